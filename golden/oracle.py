"""Implementations nobody here wrote, as oracles: transformers in float64 for truth, others in float32 for spread.

transformers "in float64" keeps float32 in four places (norms, rotary angles, softmax, the embedding's scale); inside
float64_everywhere() those casts are taken out, and it serves to 1e-12.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel
from transformers.models.gemma3 import modeling_gemma3

Array = NDArray[Any]


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """Take transformers' casts to float32 out."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self._norm(x) * (1.0 + self.weight)

    def rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str) -> Any:
        base, head = self.config.rope_parameters[layer_type]["rope_theta"], self.config.head_dim
        frequency = 1.0 / (base ** (torch.arange(0, head, 2, dtype=torch.float64) / head))
        angle = position_ids[..., None].double() * frequency
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    def scaled(self: Any, ids: torch.Tensor) -> torch.Tensor:
        return nn.Embedding.forward(self, ids) * self.scalar_embed_scale

    softmax = nn.functional.softmax
    places = [
        (modeling_gemma3.Gemma3RMSNorm, "forward", norm),
        (modeling_gemma3.Gemma3RotaryEmbedding, "forward", rotary),
        (modeling_gemma3.Gemma3TextScaledWordEmbedding, "forward", scaled),
        (nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim)),
    ]
    before = [getattr(owner, name) for owner, name, _ in places]
    try:
        for owner, name, function in places:
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name, _), original in zip(places, before, strict=True):
            setattr(owner, name, original)


class Oracle:
    """transformers' model of a checkpoint folder at one precision, with its own dense head in torch."""

    def __init__(self, folder: Path, dtype: torch.dtype, attention: str = "eager") -> None:
        self.model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
        self.dense = [
            load_file(folder / name / "model.safetensors")["linear.weight"].to(dtype) for name in ("2_Dense", "3_Dense")
        ]

    def run(self, ids: Array, coarse: bool = False) -> dict[str, Array]:
        """The stages a port can be asked for, under the reference's names: float64 arrays.

        coarse   only what enters and leaves each layer
        """
        seen: dict[str, Array] = {}
        hooks = []

        def keep(name: str, module: nn.Module) -> None:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[name] = (output[0] if isinstance(output, tuple) else output).detach()[0].double().numpy().copy()

            hooks.append(module.register_forward_hook(hook))

        keep("embedded", self.model.embed_tokens)
        keep("final_norm", self.model.norm)
        for index, layer in enumerate(self.model.layers):
            name = f"layer.{index:02d}"
            keep(f"{name}.out", layer)
            if coarse:
                continue
            keep(f"{name}.attention.norm", layer.input_layernorm)
            keep(f"{name}.attention.output", layer.self_attn.o_proj)
            keep(f"{name}.attention.update", layer.post_attention_layernorm)
            keep(f"{name}.mlp.norm", layer.pre_feedforward_layernorm)
            keep(f"{name}.mlp.gate", layer.mlp.gate_proj)
            keep(f"{name}.mlp.up", layer.mlp.up_proj)
            keep(f"{name}.mlp.output", layer.mlp.down_proj)
            keep(f"{name}.mlp.update", layer.post_feedforward_layernorm)
        with torch.no_grad():
            states = self.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
            pooled = states.mean(0)
            up = nn.functional.linear(pooled, self.dense[0])
            projected = nn.functional.linear(up, self.dense[1])
            embedding = nn.functional.normalize(projected, dim=0)
        for hook in hooks:
            hook.remove()
        tail = {"pooled": pooled, "projected_up": up, "projected": projected, "embedding": embedding}
        return seen | {name: tensor.double().numpy() for name, tensor in tail.items()}


class OnnxOracle:
    """The same model exported to ONNX and run by ONNX Runtime in float32; its last stage only."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        import onnxruntime

        file = scratch / "encoder.onnx"
        if not file.exists():
            export_onnx(folder, file)
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.dense = [
            load_file(folder / name / "model.safetensors")["linear.weight"].float().numpy()
            for name in ("2_Dense", "3_Dense")
        ]

    def run(self, ids: Array, coarse: bool = False) -> dict[str, Array]:
        """The last stages of one text."""
        feed = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
        states = self.session.run(None, feed)[0][0]
        pooled = states.mean(0)
        projected = pooled @ self.dense[0].T @ self.dense[1].T
        return {"final_norm": states, "pooled": pooled, "embedding": projected / np.linalg.norm(projected)}


def export_onnx(folder: Path, file: Path) -> None:
    """Export transformers' encoder with free batch and length."""
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    encoder.config.use_cache = False

    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    ids = torch.randint(5, 700, (2, 40))
    free = {0: torch.export.Dim("texts", min=1, max=256), 1: torch.export.Dim("tokens", min=2, max=2048)}
    torch.onnx.export(
        States(),
        (ids, torch.ones_like(ids)),
        dynamo=True,
        external_data=True,
        dynamic_shapes={"input_ids": free, "attention_mask": free},
        input_names=["input_ids", "attention_mask"],
        output_names=["states"],
    ).save(str(file), external_data=True)
