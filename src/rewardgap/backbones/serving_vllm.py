"""A policy that vLLM holds in this process. It needs a GPU, and an environment with vLLM in it.

Source: vLLM documentation, "Offline Inference" (docs.vllm.ai/en/stable/serving/offline_inference), `vllm.LLM`,
    `vllm.SamplingParams` and `vllm.outputs.RequestOutput`. Written and tested against that interface with a stand-in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewardgap.backbones.load import locate
from rewardgap.backbones.serving import READ, Asked, WriteRule, Written, log_prob
from rewardgap.core.errors import MissingExtraError, ModelError
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FAILURES = (ValueError, RuntimeError, OSError, AssertionError)


class InProcessEngine:
    """`vllm.LLM` with token ids in and out.

    Args:
        model: a short name, a folder, or a hub id `owner/name[@revision]`.
        tokenizer: the same, of the tokenizer.
        dtype: number type of the weights.
        context: the longest sequence, in tokens; the model's own unless given, which may not fit the memory.
        tensor_parallel_size: GPUs the weights are spread over.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes; leave room for reward models on the same one.

    Raises:
        MissingExtraError: if vLLM is not installed.
        ModelError: if vLLM cannot load the model, for example without a GPU.
    """

    cannot_score = ""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str,
        dtype: str = "float32",
        context: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise MissingExtraError(
                f"policy 'vllm:{model}' needs the package 'vllm' and a GPU. Install rewardgap[vllm] in an environment "
                "of its own, since it brings a torch of its own, or run `vllm serve` and name the policy served:URL."
            ) from error
        self.name = model
        self._parameters = vllm.SamplingParams
        (weights, revision), (words, words_revision) = locate(model), locate(tokenizer)
        try:
            self._llm = vllm.LLM(
                model=weights,
                revision=revision,
                tokenizer=words,
                tokenizer_revision=words_revision,
                dtype=dtype,
                max_model_len=context,
                tensor_parallel_size=tensor_parallel_size,
                gpu_memory_utilization=gpu_memory_utilization,
                trust_remote_code=False,
            )
            self.context = int(context or self._llm.llm_engine.model_config.max_model_len)
        except _FAILURES as error:
            raise ModelError(f"vLLM cannot load '{model}': {_first_line(error)}.") from error
        self.fingerprint = content_hash(["vllm/1", model, dtype, str(getattr(vllm, "__version__", ""))])

    def write(self, asked: Sequence[Asked], rule: WriteRule) -> list[Written]:
        """Return a completion for each, in order; each has a seed of its own.

        Raises:
            ModelError: if vLLM fails, or does not finish a completion.
        """
        rows = [self._parameters(**rule.request(job.seed), detokenize=False) for job in asked]
        written = []
        for answer in self._generate([job.ids for job in asked], rows):
            output = answer.outputs[0]
            if output.finish_reason not in ("stop", "length"):
                raise ModelError(
                    f"vLLM ended a completion of '{self.name}' with '{output.finish_reason}'; see its log."
                )
            written.append(Written(tuple(output.token_ids), output.finish_reason == "stop"))
        return written

    def read(self, sequences: Sequence[Sequence[int]], top: int) -> list[list[Mapping[int, float]]]:
        """Return the log-probabilities of the tokens of given sequences (`prompt_logprobs`)."""
        rule = self._parameters(**READ.request(0), prompt_logprobs=top, detokenize=False)
        return [
            [
                {int(token): log_prob(entry.logprob, self.name) for token, entry in (table or {}).items()}
                for table in answer.prompt_logprobs
            ]
            for answer in self._generate(sequences, [rule] * len(sequences))
        ]

    def _generate(self, prompts: Sequence[Sequence[int]], rules: Sequence[Any]) -> list[Any]:
        if not prompts:
            return []
        try:
            answers = self._llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts], list(rules), use_tqdm=False
            )
        except _FAILURES as error:
            raise ModelError(f"vLLM cannot read or write with '{self.name}': {_first_line(error)}.") from error
        return list(answers)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200].rstrip(" .:") if text else type(error).__name__
