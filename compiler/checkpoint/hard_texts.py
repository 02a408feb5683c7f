# ruff: noqa: RUF001 (look-alike characters are the point)
"""Texts that tokenizers disagree on; their ids are recorded in the bundle and checked at load.

Scripts, whitespace, digits, code, combining characters, emoji, NUL, look-alikes of special tokens, long words.
"""

HARD_TEXTS = (
    "",
    " ",
    " \t\n\r\u00a0\u2003\u3000 ",
    "Hello, world!",
    "  leading and   inner  spaces, trailing  ",
    "ALL CAPS, Title Case, camelCase, snake_case, kebab-case",
    "naïve café Ångström — “quotes” ‘single’ … ½ ﬁ ＦＵＬＬ",
    "e\u0301 vs é, n\u0303 vs ñ, \u1e69 vs s\u0323\u0307",
    "3.14159 1,000,000 0x1F 2026-01-31T23:59:59Z −5 °C ²³",
    "中文分词测试，没有空格。日本語とカタカナ、한국어도 있습니다.",
    "Привет, мир! Γειά σου Κόσμε. İstanbul ISPARTA ΣΊΣΥΦΟΣ",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก",
    "👋🏽 👨\u200d👩\u200d👧\u200d👦 🇪🇺 ❤\ufe0f ✔ ☃",
    "def f(x: int) -> str:\n\treturn f'{x!r:>{10}}'  # ok?\n",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\dir\\file.txt",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <pad> <mask> <unk> <bos> <eos> <|endoftext|> <|im_end|>",
    "[cls]<S>< s ></ s >##ing ▁under Ġbyte",
    "nul\x00inside, bell\x07, zero\u200bwidth, bom\ufeff, soft\u00adhyphen, bidi\u202eoverride",
    "a" * 300,
    "honorificabilitudinitatibus" * 8,
    "\ufffd \uffff \U0001f9ff \U000e0041 \U0010fffd",
)
