"""The network with a known distribution: its table, and the bag of words in its hidden state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.words import words_model
from rewardgap.core.errors import DataError
from rewardgap.numerics.control_world import control_table

TABLE = control_table()
WORDS = len(TABLE.words)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("synthetic-words")


@settings(max_examples=40)
@given(prefix=st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=60))
def test_log_probabilities_are_the_table(backbone: Backbone, prefix: list[int]) -> None:
    with torch.no_grad():
        state = backbone.model.get_decoder()(input_ids=torch.tensor([prefix])).last_hidden_state[0, -1]
        log_probs = backbone.log_probs(state).numpy()
    np.testing.assert_allclose(log_probs, TABLE.log_probs[prefix[-1]], rtol=0, atol=1e-5)
    assert np.exp(log_probs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


@settings(max_examples=40)
@given(prefix=st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=60))
def test_the_hidden_state_holds_the_bag_of_words(backbone: Backbone, prefix: list[int]) -> None:
    """Second block of the state = 1e-3 · sqrt(2 V) · share of each word among the tokens so far, last one included."""
    size = WORDS + 1
    with torch.no_grad():
        state = backbone.model.get_decoder()(input_ids=torch.tensor([prefix])).last_hidden_state[0, -1].double().numpy()
    shares = np.bincount(prefix, minlength=size) / len(prefix)
    np.testing.assert_allclose(state[size:] / (1e-3 * np.sqrt(2 * size)), shares, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state[:size] / np.sqrt(2 * size), np.eye(size)[prefix[-1]], rtol=0, atol=1e-5)


def test_it_packs_and_speaks_in_words(backbone: Backbone) -> None:
    assert backbone.packs
    encoder = backbone.encoder
    ids = encoder.encode_prompt("river garden")
    assert ids == (TABLE.words.index("river"), TABLE.words.index("garden"))
    assert encoder.encode_completion("stone light", after="river") == (
        TABLE.words.index("stone"), TABLE.words.index("light"),
    )  # fmt: skip
    assert encoder.decode(ids) == "river garden"
    assert encoder.end_ids == (WORDS,)
    with pytest.raises(DataError, match="control token"):
        encoder.encode_prompt("river <end> stone")


def test_any_table_can_be_built() -> None:
    log_probs = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]]))
    model, _ = words_model(("a", "b"), log_probs)
    with torch.no_grad():
        got = torch.log_softmax(model(torch.tensor([[0, 1, 0], [1, 1, 1]])).logits[:, -1], -1)
    np.testing.assert_allclose(got, log_probs[[0, 1]], atol=1e-5)


def test_the_folder_is_made_once(backbone: Backbone) -> None:
    assert load_backbone("synthetic-words").fingerprint == backbone.fingerprint
