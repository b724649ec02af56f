"""A tokenizer that begins every text with `<s>`, a template that does so too, and the token ids that
transformers gives a model of conversations; for the tests of `conversation`.

    pip install transformers==4.57.6 tokenizers==0.22.2 jinja2==3.1.6
    python make.py
"""
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' }}
{% endfor %}
{%- if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HELLO = [("user", "Hello, who are you?")]
CHATS = [
    HELLO,
    [("system", "Be  brief."), *HELLO],
    [*HELLO, ("assistant", "I am a test."), ("user", "  Say it\nagain, naïve 漢字 🍝 \n")],
]


def main():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text for chat in CHATS for _, text in chat] * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(24)  # a model folder may say so; it is not meant for conversations
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(HERE / "model", save_jinja_files=False)
    cases = []
    for chat in CHATS:
        chat = [{"role": role, "content": text} for role, text in chat]
        text = fast.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = fast.apply_chat_template(chat, add_generation_prompt=True)
        assert ids[0] == 0 and ids[1] != 0
        cases.append({"turns": chat, "text": text, "ids": ids})
    (HERE / "cases.json").write_text(json.dumps(cases, ensure_ascii=False) + "\n")
    (HERE / "model" / "special_tokens_map.json").unlink()
    (HERE / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}) + "\n")


main()
