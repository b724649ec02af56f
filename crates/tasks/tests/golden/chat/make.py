"""Texts, tokens and masks that transformers makes of chats, for the tests of `chat_template` and `lm`.

    pip install transformers==4.57.6 tokenizers==0.22.2 jinja2==3.1.6
    python make.py
"""
import json
from pathlib import Path

import jinja2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
BUILTIN = HERE / "../../../src/chat_template/builtin"
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]

PLAIN = [("user", "Hello, who are you?"), ("assistant", "I am a test.")]
CHATS = [
    PLAIN,
    [("system", "Be  brief."), *PLAIN],
    [*PLAIN, ("user", "  Say it\nagain, naïve 漢字 🍝 \n"), ("assistant", " Again: \"it\" <b>&amp;</b> \n")],
    [("system", "One.\n"), *PLAIN, *PLAIN, ("user", "!hello all"), ("assistant", "<think>\nhm\n</think>\n\nYes!")],
    [("assistant", "I start."), ("user", "Why?"), ("assistant", "So.")],
    [("user", "One"), ("user", "Two"), ("assistant", "Three")],
]


def tokenizer():
    words = [text for chat in CHATS for _, text in chat]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(words * 3, trainer)
    # Cuts the space off offsets, as GPT-2's and Llama's do.
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token=AddedToken("<pad>", special=True)
    )
    fast.save_pretrained(HERE / "model")
    # The mask of transformers loses a turn that starts with a space where offsets are cut.
    fast.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return fast


def render(fast, template, chat, **options):
    try:
        return fast.apply_chat_template(chat, chat_template=template, tokenize=False, **options)
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}


def main():
    fast = tokenizer()
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in CHATS]
    texts, masks = [], []
    for path in sorted(BUILTIN.glob("*.jinja")) + sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text()
        for index, chat in enumerate(chats):
            text = render(fast, template, chat)
            prompt = render(fast, template, chat[:-1], add_generation_prompt=True)
            texts.append({"template": path.stem, "chat": index, "text": text, "prompt": prompt})
            if "generation %}" in template:
                out = fast.apply_chat_template(
                    chat, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
                )
                ids, mask = out["input_ids"], out["assistant_masks"]
                masks.append({"template": path.stem, "chat": index, "ids": ids, "mask": mask})
    cases = {"chats": chats, "texts": texts, "masks": masks}
    (HERE / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


main()
