"""Complete miniature models for tests, made on the spot: nothing is downloaded."""

from pathlib import Path

import timm
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

SENTENCES = [
    "Given the sequence of visual events, what action is being performed? Choose from: drink water, eat meal, sit down, stand up.",
    "drink water eat meal brush teeth drop pick up throw sitting down standing up clapping reading writing bend jump run walk wave",
    "user assistant system the person is doing what they do USER: ASSISTANT:",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(chat_template: str | None = CHAT, **special: str) -> PreTrainedTokenizerFast:
    """A real byte-level BPE trained on three sentences, with ``<image>``; without a chat template it is Vicuna-like, with a first token."""
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"} if chat_template else {"bos_token": "<s>", "eos_token": "</s>"}
    tokens |= special
    added = sorted({*tokens.values(), "<|im_start|>", "<image>"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=added, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    made.chat_template = chat_template
    return made


def tiny_llava(
    folder: Path,
    event_dim: int = 16,
    layers: int = 3,
    seed: int = 0,
    chat_template: str | None = CHAT,
    language: type[PretrainedConfig] = LlamaConfig,
) -> Path:
    """Save a LLaVA of about 50,000 parameters with its tokenizer: 4 heads that share 2 key/value heads, random weights.

    Args:
        folder: Where to; made if it does not exist.
        event_dim: E, a multiple of 4.
        layers: Of the language model.
        seed: Of the weights.
        chat_template: None for a tokenizer without one, as LLaVA-1.5's.
        language: The language model's family.

    Returns:
        ``folder``
    """
    tokenizer = tiny_tokenizer(chat_template)
    config = LlavaConfig(
        text_config=language(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=event_dim, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


BACKBONE, FEATURE_DIM = "test_resnet", 96
"""A timm architecture of 0.5 million parameters, and the width of its features"""


def tiny_backbone(file: Path, seed: int = 0) -> Path:
    """Save weights of :data:`BACKBONE`, random. With features as narrow as these the start of stage 1 takes a hundredth of the time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(timm.create_model(BACKBONE, num_classes=0).state_dict(), file)
    return file
