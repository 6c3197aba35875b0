"""The configurations of llava-hf's LLaVA-1.5 as they are on the hub, for tests that need its size and not its weights."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtlvlm.bench.vtem import TOWER

VOCABULARY = 32_064
"""Vicuna's 32,000 words with <image> (32,000) and <pad> (32,001), rounded up to a multiple of 64"""
TEXT = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
LANGUAGE_PARAMETERS = {"7b": 6_738_415_616 + 2 * 64 * 4096, "13b": 13_015_864_320 + 2 * 64 * 5120}
"""Llama-2's published sizes, and 64 more rows of embeddings and head"""


def llava_config(size: str) -> LlavaConfig:
    """llava-hf/llava-1.5-7b-hf or -13b-hf."""
    text = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, rms_norm_eps=1e-5, **TEXT[size])
    return LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(projection_dim=768, vocab_size=32_000, **TOWER),
        image_token_index=32_000,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def llava_without_weights(size: str) -> LlavaForConditionalGeneration:
    """The model on the meta device, frozen and without its vision tower, as ``load_llava`` gives it."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava_config(size))
    model.model.vision_tower = None
    return model.requires_grad_(False).eval()
