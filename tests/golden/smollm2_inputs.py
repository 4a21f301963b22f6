"""The texts that make_smollm2.py puts to the model and its tokenizer. All written for this file."""

QUESTIONS = [
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short poem about a river.",
    "List three primary colors.",
    "What is 7 times 8?",
    "Explain what a computer program is in one sentence.",
    'Translate "good morning" into Spanish.',
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What is the difference between a frog and a toad?",
    "Write a Python function that adds two numbers.",
    "Name the planets of the solar system in order from the sun.",
]

TEXTS = [
    "The lighthouse at the end of the point was built of grey stone, and for a hundred years it "
    "had warned ships away from the rocks below. Every evening the keeper climbed the narrow "
    "stairs, trimmed the lamp, and wound the clockwork that turned the great lens. When the fog "
    "came in from the sea he rang a bell, once every minute, until the air was clear again. He "
    "kept a diary in which he wrote the direction of the wind, the height of the waves, and the "
    "names of the boats that passed. Most of the entries were short, because most of the days "
    "were alike. But in the winter of his last year he wrote a long page about a storm that broke "
    "the windows of the lamp room and put out the light. For two hours he stood in the dark with "
    "a lantern in his hands, turning slowly in a circle, so that the boats would still see "
    "something move. In the morning the wind fell, and three fishing boats came safely into the "
    "harbor. The sailors brought him bread, a bottle of wine, and a new pane of glass. He thanked "
    "them, and then he went back up the stairs, because there was still oil to carry and the "
    "lens had to be cleaned before the evening.",
    "Bread is made from very few things: flour, water, salt, and yeast. What makes one loaf "
    "different from another is mostly time and temperature. When flour and water are mixed, two "
    "proteins join to form gluten, a network that can stretch and hold gas. Yeast feeds on the "
    "sugars in the flour and gives off carbon dioxide, which fills the network with small bubbles. "
    "A warm dough rises quickly, in an hour or two, but it has less flavor, because the slow "
    "reactions that produce acids and alcohols do not have time to happen. A cold dough, kept in a "
    "refrigerator overnight, rises slowly and tastes better. Salt slows the yeast, makes the "
    "gluten stronger, and gives taste. In the oven the gas expands, the water turns to steam, and "
    "the starch sets, so that the loaf keeps its shape. The crust becomes brown because sugars and "
    "proteins react with each other at high temperatures. Bakers often put a pan of water in the "
    "oven for the first ten minutes: the steam keeps the surface soft, and the loaf can grow "
    "before the crust becomes hard. After baking, the bread should rest on a rack until it is "
    "cool, since the inside is still cooking.",
    "A map is never a copy of the land. It is a choice about what matters. A sailor needs the "
    "depth of the water and the position of the buoys; a hiker needs the height of the hills and "
    "the paths between them; a driver needs the numbers of the roads. The person who draws a map "
    "must leave out almost everything, and the skill lies in leaving out the right things. Maps "
    "also have to solve a problem that has no perfect answer, which is how to put a round world on "
    "a flat sheet. If the shapes are kept, the areas are wrong, and if the areas are kept, the "
    "shapes are bent. In 1569 a maker of maps published a chart on which every straight line was "
    "a line of constant direction. It was very useful at sea, but it made the lands near the poles "
    "look enormous. Today most people carry a map in a pocket, and it turns as they turn. It shows "
    "where they are with a small blue dot, which no paper map could ever do. Yet something was "
    "lost as well. On a large sheet of paper one could see what lay beyond the next town, and "
    "many journeys began because somebody looked at a name in the corner and wondered what was "
    "there.",
]

CONVERSATIONS = [
    [{"role": "user", "content": "Hello!"}],
    [
        {"role": "system", "content": "You are a pirate. Answer briefly."},
        {"role": "user", "content": "Where is the treasure?"},
    ],
    [
        {"role": "user", "content": "My name is Ana."},
        {"role": "assistant", "content": "Nice to meet you, Ana."},
        {"role": "user", "content": "What is my name?"},
    ],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "  two lines\nand spaces  "},
        {"role": "assistant", "content": "{{ 1 + 1 }} <b>&amp;</b>"},
        {"role": "user", "content": "naïve café 你好 🙂"},
    ],
]

STRINGS = [
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n\n\n ",
    "\t",
    "\t\t x",
    " \n \n",
    "\r\n",
    "a\r\nb",
    "Hello, world!",
    "hello",
    " hello",
    "  hello",
    "hello ",
    "hello  world",
    "HELLO WORLD",
    "I'm you're he's we'll they've I'd don't",
    "I'M YOU'RE HE'S",
    "'s 't 'll '",
    "o'clock ''",
    "1",
    "12",
    "123",
    "1234567890",
    "3.14159",
    "1,000,000",
    "v2.0.1-rc3",
    "x1y22z333",
    " 42 ",
    "0x1F",
    "2024-02-29T12:34:56Z",
    "½ ² ٣ ४ 五 Ⅷ",
    "naïve café",
    "cafe\u0301 (combining)",
    "Straße, Łódź, Ærøskøbing",
    "Привет, мир!",
    "Γειά σου Κόσμε",
    "你好,世界!",
    "这是一个测试。",
    "こんにちは世界",
    "안녕하세요 세계",
    "สวัสดีชาวโลก",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "🙂",
    "👨‍👩‍👧‍👦 family",
    "🇫🇷🇩🇪",
    "👍🏽 ok",
    "\u00a0nbsp\u00a0",
    "zero\u200bwidth\u200djoin",
    "\ufeffbom",
    "\u2028line\u2029para",
    "\u3000wide",
    "control \x01\x02\x1b\x7f end",
    "null-free \x0b\x0c",
    "�",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|>",
    "<|im_end|><|im_end|>",
    "<|endoftext|>",
    " <|im_end|> ",
    "<|im_start|",
    "<|IM_START|>",
    "a<repo_name>b<file_sep>",
    "<unk><s></s>",
    "def f(x):\n    return x**2  # square\n",
    "for (int i = 0; i < n; i++) {\n\ta[i] += 1;\n}",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x';",
    "https://example.com/a?b=c&d=%20#e",
    "user.name+tag@example.co.uk",
    "C:\\Users\\me\\file.txt",
    '{"a": [1, 2, null], "b": true}',
    "$100 €50 ¥1000 50% #1 @me *bold* _it_ ~~x~~",
    "!!!???...---___===",
    "((([[[{{{}}}]]])))",
    "word" + " " * 17 + "word",
    "a" * 40,
    "supercalifragilisticexpialidocious",
    "    indent\n\n\n\tmix",
]
