"""llama.cpp's token ids with every pre-tokenizer it knows, on a small vocabulary made here.

Its merges know no borders of words: they were learned from whole texts, so that almost every border
that a pre-tokenizer draws, or leaves out, shows in the ids.
"""

import json
import random
import tempfile
from pathlib import Path

import gguf
import llama_cpp
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

#: The values of tokenizer.ggml.pre: with characters that stand for bytes, and without.
NAMES = {
    True: """
        default gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code
        roberta-bpe modern-bert gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion
        granite-docling smollm starcoder refact command-r codeshell exaone minerva-7b mellum2
        bailingmoe bailingmoe2 llada-moe
        falcon llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx
        smaug-bpe chatglm-bpe glm4 glm5 minicpm5 jais-2 qwen2 deepseek-r1-qwen kormo f2llmv2
        megrez stablelm2 hunyuan solar-open grok-2 laguna ufakzeka seed-coder qwen35 exaone-moe
        tekken gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m tiny_aya cohere2moe
        youtu kimi-k2 deepseek-llm deepseek-coder deepseek-v3 hunyuan-dense joyai-llm hy_v4
        spark2_5 afmoe superbpe bloom poro-chat gpt3-finnish viking chameleon
    """,
    False: "gemma4 granite-embed-multi-311m sarvam-moe",
}
OUT = Path(__file__).parent / "pre_tokenizers.json"
N_MERGES = 600
BOS = "<s>"
#: Words that no merge builds: only where whole words are looked up first are they found.
WHOLE = {True: ["Ġquartz", "quartz"], False: ["quartz"]}
TEXTS = [
    "",
    " ",
    "quartz quartz",
    "Hello there, world! It is a fine day.",
    "I'm sure we'll say they've gone, isn't it? He'd know; you're late, it's nine.",
    "I'M SURE WE'LL SAY THEY'VE GONE, ISN'T IT? HE'D KNOW; YOU'RE LATE, IT'S NINE.",
    "it’s he's 'tis rock 'n' roll 'LL'lL 'Ve'vE 'Re'rE x'ſ d'd ''s",
    "camelCase HTTPServer XMLHttpRequest iPhone aBC ABc ÉColeÉtude éCOLE Straße STRASSEß",
    "snake_case kebab-case dot.case $money @at #tag a=b a==b a->b a::b x+=1; // note /* more */",
    "!!! ??? ... ---- ==== ~~~ ``` ||| <<>> ^^ {[()]} !word #word -word /word\n/next//\n\n//",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
    "a1 b12 c123 d1234 1a 12b 3.14 1,000,000 1e10 0x1F 2024-01-31 10:45:30 v2.0.1",
    "   9  99   999    9999\t12345\n1234\n\n 1234567",
    "٣٤٥٦ ४५६७ ½ ² Ⅷ ① 五 12٣456 345٣678 ٣4567 1000½ 12½34567",
    "a b  c   d    e     f      g       h        i                 j",
    "line\nline\n\nline\n\n\nline \n line\n  line\t\n\tline\r\nline\r\n\r\nline\r\rend\n",
    "end.\n\n\nnew !\r\n\r\n? word\n/word /\n/ x/\n\n/y",
    "\t\t\ttabs \t mixed\t \t \n\n\t\v\f end   ",
    "\u00a0no-break\u00a0 \u00a0space \u3000wide\u3000\u3000。\u2003\u2028line\u2029para\u0085next",
    "中文字符，没有空格。我在2024年写了123行代码！龥龦〇々 㐀㐁 𠀀𠀁 豈更 ︰﹏",
    "日本語のテキストとカタカナ、ﾊﾝｶｸ「引用」・ー ー！",
    "한국어 문장입니다. ㄱㄴㄷ ㄅㄆㄇ 가나다123",
    "ภาษาไทยไม่มีช่องว่าง ລາວ ភាសាខ្មែរ မြန်မာ ꩠꧠ",
    "हिन्दी में क्षत्रिय और ज्ञान। বাংলা ভাষা। தமிழ் மொழி తెలుగు",
    "العربية مع الحركات: مُحَمَّدٌ، كتاب۔ שָׁלוֹם עולם",
    "e\u0301 a\u0308 n\u0303o \u0301\u0308x ́ ́́ i\u0307\u0307 a\u20dd 1\u0301 !\u0301!",
    "Русский текст: ёлка, ЁЛКА. Ελληνικά ΚΕΊΜΕΝΟ. Հայերեն ՀԱՅ. ქართული ᲥᲐᲠᲗ. Ꭰꭰ",
    "𝐀𝐁 𝔞𝔟 𝟗𝟘 ǅ ʰ ª º ſ K Å ꟃ ⅷ ℓ ﬀ",
    "🙂🙃 👩‍👩‍👧 🇩🇪🇫🇷 👍🏽 ❤️ ♥ ⚙word word⚙ ™© €5 £10 ±×→∑",
    "“quoted” ‘single’ «guillemets» —dash– …dots… ·¿¡§°",
    "d'saw d'sand m'tin c'dance d'llama x're-use l'Mama l'Mano d'Saw d'saw d'sand m'tin c'dance",
    "nul\x00byte \x01\x02 \x7f soft\u00adhyphen zero\u200bwidth join\u200d \ufeffbom \ufffd \ue000",
    "<sentinel:12> <sentinel:x> IMGIMGABCZ IMGIMGJZ    four  two\t\n",
    "1. one\n2. two\n10. ten\n- item\n  * sub\n```py\nfor i in range(10):\n    x[i] = i**2\n```\n",
    "мир123мир 字123字 a字a a한a a か a ไ字 .字 ,a !a\n?a\r",
]
ATOMS = [
    *"abéÉ中の한اиЯßʰ07٣½'.,!?-/()$^`|_#。，“…😀\u0301\u093f\u200d\x01",
    *("The", "ing", "12", "345", "6789", "'s", "'LL", "'vE", "//"),
]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", " \n", "\n "]


def random_texts(n: int) -> list[str]:
    random.seed(14)
    return [
        "".join(random.choice(SPACES if random.random() < 0.3 else ATOMS) for _ in range(24))
        for _ in range(n)
    ]


def make_vocabulary(texts: list[str], byte_level: bool) -> dict[str, list[str]]:
    """Tokens and merges. Ids: bos, bytes, what merges make, whole words."""
    tok = Tokenizer(models.BPE())
    if byte_level:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        first = alphabet
    else:
        tok.normalizer = normalizers.Replace(" ", "▁")
        # The letters alone: all other characters are spelled in bytes.
        alphabet = sorted({c for c in "".join(texts) if c.isalpha()} | {"▁", "\n", "."})
        first = [f"<0x{b:02X}>" for b in range(256)] + alphabet
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + N_MERGES,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    whole = WHOLE[byte_level][-1]
    tok.train_from_iterator((text for text in texts * 2 if whole not in text), trainer)
    merges = [f"{a} {b}" for a, b in json.loads(tok.to_str())["model"]["merges"]]
    made = [merge.replace(" ", "") for merge in merges]
    tokens = list(dict.fromkeys([BOS, *first, *made, *WHOLE[byte_level]]))
    assert not set(made) & set(WHOLE[byte_level])
    return {"tokens": tokens, "merges": merges}


def write_vocabulary(path: Path, pre: str, vocabulary: dict[str, list[str]]) -> None:
    kinds = gguf.TokenType
    tokens = vocabulary["tokens"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [
            kinds.CONTROL if t == BOS else kinds.BYTE if t.startswith("<0x") else kinds.NORMAL
            for t in tokens
        ]
    )
    writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def llama_cpp_ids(path: Path, texts: list[str]) -> list[list[int]]:
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ids = [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    model.close()
    return ids


def main() -> None:
    texts = TEXTS + random_texts(20)
    vocabularies = {kind: make_vocabulary(texts, kind) for kind in (True, False)}
    distinct: list[list[list[int]]] = [[] for _ in texts]
    groups: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for byte_level, names in NAMES.items():
            for name in names.split():
                path = Path(folder) / f"{name}.gguf"
                write_vocabulary(path, name, vocabularies[byte_level])
                which = []
                for known, ids in zip(distinct, llama_cpp_ids(path, texts), strict=True):
                    if ids not in known:
                        known.append(ids)
                    which.append(known.index(ids))
                group = {"names": [], "byte_level": byte_level, "which": which}
                groups.setdefault(json.dumps(which), group)["names"].append(name)
    golden = {
        "byte_level": vocabularies[True],
        "spelled": vocabularies[False],
        "texts": texts,
        "ids": distinct,
        "groups": list(groups.values()),
    }
    OUT.write_text(json.dumps(golden, separators=(",", ":")).replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    main()
