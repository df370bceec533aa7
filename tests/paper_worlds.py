"""The studies of the paper at toy size: random Qwen2 networks in the hub's layout, and data in the datasets' layouts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from rewardgap.core.records import PreferencePair
from rewardgap.data.base import PreferenceDataset
from rewardgap.data.folder import write_folder
from rewardgap.data.hub_card import Background
from rewardgap.studies.points import Point, points
from rewardgap.studies.spec import StudySpec, parse_study
from standins import save_hub_folder, tiny_model, tiny_tokenizer

STUDIES = Path(__file__).parents[1] / "studies" / "paper"
WORDS = ["river", "stone", "light", "garden", "paper", "winter", "music", "candle", "red", "blue"]
FEW: dict[str, dict[str, Any]] = {
    "p_dpo": {"num_user_tokens": 2, "num_clusters": 2, "adapt_steps": 2},
    "genarm": {"num_user_tokens": 2, "num_clusters": 2, "adapt_steps": 2},
    "pal_a": {"map_width": 8, "hidden_width": 8},
    "pal_b": {"map_width": 8, "hidden_width": 8},
    "vpl": {"latent": 2, "encoder_width": 8, "decoder_width": 8, "max_steps": 20},
    "mpu": {"user_steps": 2},
    "icl_judge": {"labels": ["A", "B"]},
}


def _words(draw: np.random.Generator, count: int) -> str:
    return " ".join(draw.choice(WORDS, count))


def write_tldr(folder: Path, workers: int, rows: int) -> Path:
    """Write comparisons in the layout of their original JSON lines; of each worker a half is for validation."""
    draw = np.random.default_rng(0)
    place = folder / f"tldr_{rows}" / "comparisons"
    place.mkdir(parents=True)
    lines = []
    for worker in range(workers):
        for row in range(rows):
            info = {"id": f"t3_{worker}_{row}", "post": _words(draw, 4), "title": f"{worker} {row}", "subreddit": "tea"}
            sides = [{"text": f" {_words(draw, 2)} {side}", "policy": "sup1", "note": None} for side in ("one", "two")]
            lines.append(
                {
                    "info": info,
                    "summaries": sides,
                    "choice": int(draw.integers(2)),
                    "worker": f"w{worker}",
                    "batch": "batch1",
                    "split": ("train", "valid1")[row % 2],
                    "extra": {"confidence": 5},
                }
            )
    (place / "batch1.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place.parent


def write_prism(folder: Path, people: int) -> Path:
    """Write six conversations a person in the project's layout, of one turn with three scored replies."""
    draw = np.random.default_rng(1)
    place = folder / "prism"
    place.mkdir()
    conversations, survey = [], []
    for person in range(people):
        survey.append({"user_id": f"user{person}", "survey_only": False, "num_completed_conversations": 6})
        for number in range(6):
            asked = f"{_words(draw, 3)} {person} {number}?"
            replies = [
                {
                    "turn": 0,
                    "role": "model",
                    "content": f"{_words(draw, 2)} {reply}",
                    "model_name": f"m{reply}",
                    "model_provider": "x",
                    "score": 80 - 20 * reply,
                    "if_chosen": reply == 0,
                    "within_turn_id": reply,
                }
                for reply in range(3)
            ]
            conversations.append(
                {
                    "conversation_id": f"c{person}.{number}",
                    "user_id": f"user{person}",
                    "included_in_balanced_subset": True,
                    "generated_datetime": "2023-12-01 10:00:00",
                    "conversation_type": "unguided",
                    "opening_prompt": asked,
                    "conversation_turns": 1,
                    "conversation_history": [{"turn": 0, "role": "user", "content": asked}, *replies],
                    "open_feedback": "",
                }
            )
    for name, rows in (("conversations", conversations), ("survey", survey)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def write_pref_lamp(folder: Path, users: int, rows: int) -> Path:
    """Write a dataset folder as `data prepare pref-lamp` does."""
    draw = np.random.default_rng(2)
    pairs = tuple(
        PreferencePair(
            user_id=f"u{user}",
            example_id=f"u{user}-{row}",
            prompt=f"Title: {_words(draw, 3)} {user} {row}",
            chosen=f"{_words(draw, 2)} yes",
            rejected=f"{_words(draw, 2)} no",
            reference=_words(draw, 3),
        )
        for user in range(users)
        for row in range(rows)
    )
    place = folder / "pref_lamp"
    write_folder(
        PreferenceDataset("pref_lamp", pairs, first_line=True),
        place,
        Background(licence="mit", source="made for tests"),
    )
    return place


def write_jester(folder: Path, users: int) -> Path:
    """Write ratings by item, and the items."""
    draw = np.random.default_rng(3)
    place = folder / "jester"
    place.mkdir()
    items = [{"item_id": str(number), "text": f"{_words(draw, 3)} {number}"} for number in range(16)]
    rows = [
        {"user_id": f"r{user}", "ratings": {item["item_id"]: float(draw.uniform(-10, 10)) for item in items}}
        for user in range(users)
    ]
    (place / "jokes.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    with gzip.open(place / "ratings.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return place


def write_policy(folder: Path, seed: int) -> Path:
    """Write a random Qwen2 of the same blocks as the real ones; each seed is another network."""
    tokenizer = tiny_tokenizer("qwen")
    model = tiny_model("qwen2", vocabulary=len(tokenizer), seed=seed, dtype=torch.float32)
    model.config.max_position_embeddings = 4096
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return save_hub_folder(folder, model, tokenizer, eos_token_id=end)


class Toys:
    """Everything that the studies name, at toy size, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, str] = {}

    def policy(self, name: str) -> str:
        if name not in self._made:
            seed = len(self._made)
            self._made[name] = str(write_policy(self.folder / name.replace("/", "_"), seed))
        return self._made[name]

    def data(self, kind: str) -> str:
        writers = {
            "tldr": lambda: write_tldr(self.folder, workers=4, rows=8),
            "tldr_thresholds": lambda: write_tldr(self.folder, workers=3, rows=50),
            "prism": lambda: write_prism(self.folder, people=6),
            "folder": lambda: write_pref_lamp(self.folder, users=5, rows=36),
            "ratings": lambda: write_jester(self.folder, users=6),
        }
        if kind not in self._made:
            self._made[kind] = str(writers[kind]())
        return self._made[kind]

    def point(self, point: Point, **changes: Any) -> StudySpec:
        """Return a point on toy networks and data: only policies, sizes, places and device differ."""
        study = point.study.model_dump()
        study |= {"dtype": "float32", "device": "cpu", "batch_size": 4, "resamples": 50, "metrics": ["rouge1"]}
        study["policy"] = self.policy(study["policy"])
        study["generation"] |= {"max_prompt_tokens": 48, "max_new_tokens": 3, "context_tokens": 1500}
        options = study["data"]["options"]
        asked = study["split"].get("protocol")
        place = self.data(asked if asked == "tldr_thresholds" else study["data"]["name"])
        if study["data"]["name"] == "ratings":
            options |= {"path": f"{place}/ratings.jsonl.gz", "items": f"{place}/jokes.jsonl"}
        else:
            options["path"] = place
        split = study["split"]
        if "protocol" not in split:
            few = {"train_users": 2, "adapt_users": 2, "pairs_per_train_user": 3, "valid_per_train_user": 1, "query": 1}
            split |= few | ({"support": min(split["support"], 3)} if study["data"]["name"] != "folder" else {})
        for spec in study["reward_models"]:
            spec["options"] |= FEW.get(spec["method"], {})
            if spec["fit_mode"] == "lora" or spec["method"] in ("p_dpo", "genarm"):
                spec |= {"epochs": 1, "batch_size": 4}
            if spec["backbone"]:
                spec["backbone"] = self.policy(spec["backbone"])
        for line in study["deployments"]:
            if "top_k" in line:
                line["top_k"] = 3
        if study["controls"]["shuffled_labels"]:
            study["controls"]["shuffled_labels"] = 1
        return parse_study({**study, **changes})


def points_of(name: str) -> list[Point]:
    """Return the points of a study of the paper."""
    return points(parse_study(yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))))
