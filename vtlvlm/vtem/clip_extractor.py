"""The CLIP tower of a LLaVA as a feature extractor (eq. 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.vtem.extractors import Backbone
from vtlvlm.vtem.precision import Precision


class ClipExtractor(Backbone):
    """The CLIP tower of a LLaVA. Its tokens are those that the LLaVA's projector was trained on.

    Features come from the layer that the LLaVA's config names, without the class token. The language model is neither loaded nor needed.

    Args:
        model: folder or hub name of a LLaVA checkpoint.
        revision: the hub's branch, tag or commit.
        grid: g; 24 keeps all patches of LLaVA-1.5.
        chunk: frames of one clip that go through the tower at once, at most. Each frame is read by itself, so features do not depend on it.
        trainable: let gradients into the tower.
        compiled: run it through ``torch.compile``.
        clips: clips in one pass, at most; see :class:`FeatureExtractor`.
        precision: of the tower's products; see :class:`Backbone`.
    """

    MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, in every LLaVA-1.5 preprocessor
    STD = (0.26862954, 0.26130258, 0.27577711)

    def __init__(
        self,
        model: str = "llava-hf/llava-1.5-7b-hf",
        revision: str | None = None,
        grid: int = 4,
        chunk: int = 16,
        trainable: bool = False,
        compiled: bool = False,
        clips: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(model, None, grid, 1, chunk, trainable, compiled, clips, precision)
        self.revision = revision
        self.layers: list[int] = []

    @property
    def dim(self) -> int:
        return int(self.built().config.hidden_size * len(self.layers))

    def make(self) -> Backbone.Made:
        from transformers import AutoConfig, CLIPVisionModel, LlavaConfig

        try:
            config = AutoConfig.from_pretrained(self.model, revision=self.revision, trust_remote_code=False)
        except Exception as error:
            raise UsageError(f"{self.model}: no such folder, and the download from the hub failed; name a LLaVA checkpoint") from error
        if not isinstance(config, LlavaConfig) or config.vision_config.model_type != "clip_vision_model":
            raise UsageError(f"{self.model}: not a LLaVA with a CLIP tower")
        layers = config.vision_feature_layer
        depth = config.vision_config.num_hidden_layers
        self.layers = [layer % (depth + 1) for layer in ([layers] if isinstance(layers, int) else layers)]  # of depth + 1 hidden states
        config.vision_config.num_hidden_layers = max(1, *self.layers)  # layers above are unused; one layer is needed to get hidden states
        self.image_size = config.vision_config.image_size
        return self.Made(CLIPVisionModel(config.vision_config), self.MEAN, self.STD)

    def download(self) -> dict[str, Tensor]:
        from safetensors import safe_open

        folder = Path(self.model)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(self.model, revision=self.revision, allow_patterns=["*.safetensors"]))
        wanted = {name.removeprefix("vision_model."): name for name in self.built().state_dict()}
        found: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as stored:
                for key in stored.keys():  # noqa: SIM118 - not a mapping
                    name = key.partition("vision_tower.")[2].removeprefix("vision_model.")
                    if name in wanted:
                        found[wanted[name]] = stored.get_tensor(key).float()
        if len(found) < len(wanted):
            raise UsageError(f"{folder}: holds {len(found)} of the {len(wanted)} tensors of its vision tower; download it again")
        return found

    def library(self) -> dict[str, str]:
        import transformers

        return {"transformers": transformers.__version__, "layers": ",".join(map(str, self.layers))}

    def feature_map(self, images: Tensor) -> Tensor:
        states = self.built()(images.flatten(0, 1), output_hidden_states=True).hidden_states
        tokens = torch.cat([states[layer] for layer in self.layers], dim=-1)[:, 1:]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(2, (side, side)).unflatten(0, images.shape[:2])
