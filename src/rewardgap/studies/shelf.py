"""What the points of a study share in one process: data, splits, models and caches, each loaded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewardgap.backbones.features import FeatureCache
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.serving import is_served
from rewardgap.backbones.traces import TraceCache
from rewardgap.core.errors import DataError
from rewardgap.core.store import cache_root, canonical_json, content_hash
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.catalog import load_dataset
from rewardgap.studies.spec import filled
from rewardgap.studies.splitting import draw_split

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rewardgap.backbones.hf import Backbone
    from rewardgap.data.partition import Split
    from rewardgap.studies.spec import StudySpec


class Shelf:
    """Things that workbenches of one process share.

    Args:
        fingerprints: of backbones, by `backbone_key`, as another process found them: a plan needs no weights then.
    """

    def __init__(self, fingerprints: Mapping[str, str] | None = None) -> None:
        self.features, self.traces = FeatureCache(), TraceCache()
        # Apart from the study's own: what is encoded first decides the last bits, and a study may be on the same words.
        self.control_features = FeatureCache(cache_root() / "controls")
        self.fingerprints: dict[str, str] = dict(fingerprints or {})
        self._backbones: dict[str, Backbone] = {}
        self._datasets: dict[str, PreferenceDataset | AuthoredDataset] = {}
        self._splits: dict[str, Split] = {}
        self._hashes: dict[int, tuple[Any, str]] = {}

    def dataset(self, study: StudySpec) -> PreferenceDataset | AuthoredDataset:
        """Return a study's dataset."""
        key = canonical_json(study.data.model_dump())
        if key not in self._datasets:
            data = load_dataset(study.data.name, **filled(study.data.options))
            if not isinstance(data, (PreferenceDataset, AuthoredDataset)):
                raise DataError(f"dataset '{study.data.name}' holds features, not texts; a study needs texts.")
            self._datasets[key] = data
        return self._datasets[key]

    def split(self, study: StudySpec) -> Split:
        """Return who is trained on and who is adapted to."""
        key = canonical_json([study.data.model_dump(), study.split.model_dump(), study.seed])
        if key not in self._splits:
            self._splits[key] = draw_split(self.dataset(study), study.split, study.seed)
        return self._splits[key]

    def hash_of(self, value: PreferenceDataset | AuthoredDataset | Split) -> str:
        """Return the fingerprint of a dataset, or the hash of a split; found once."""
        if id(value) not in self._hashes:
            found = (
                value.fingerprint()
                if isinstance(value, (PreferenceDataset, AuthoredDataset))
                else content_hash(value.to_json())
            )
            # The value is kept beside it, so that no other can come to have its id.
            self._hashes[id(value)] = (value, found)
        return self._hashes[id(value)][1]

    def backbone(self, name: str, study: StudySpec) -> Backbone:
        """Return a backbone by name, loaded once; its own name is as the study writes it."""
        key = backbone_key(name, study)
        if key not in self._backbones:
            self._backbones[key] = load_backbone(filled(name), dtype=study.dtype, device=study.device)
            self.fingerprints[key] = self._backbones[key].fingerprint
        return self._backbones[key]

    def fingerprint(self, name: str, study: StudySpec) -> str:
        """Return a backbone's fingerprint; its weights are loaded where it is not known yet."""
        key = backbone_key(name, study)
        return self.fingerprints[key] if key in self.fingerprints else self.backbone(name, study).fingerprint

    def keep(self, keys: Collection[str]) -> None:
        """Forget every backbone but these."""
        self._backbones = {key: backbone for key, backbone in self._backbones.items() if key in keys}


def backbone_key(name: str, study: StudySpec) -> str:
    """Return what tells loaded backbones apart."""
    return f"{name} {study.dtype} {study.device}"


def backbone_keys(study: StudySpec) -> frozenset[str]:
    """Return the keys of all backbones that a study reads."""
    names = {study.policy, *(spec.backbone for spec in study.reward_models if spec.backbone)}
    names |= {judge.backbone for judge in study.judges if judge.backbone and not is_served(judge.backbone)}
    return frozenset(backbone_key(name, study) for name in names)
