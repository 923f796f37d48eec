"""The line that names a published base model: for English prose, and for nothing else."""

from pathlib import Path

import pytest

from llmcli.training.data import published_base
from tests.conftest import Llm
from tests.data.corpora import read_corpus

ROOT = Path(__file__).parents[3]
LANGUAGES = {
    "German": "Am Morgen ging die alte Frau über den Markt und kaufte drei Äpfel, weil sie am Abend einen Kuchen "
    "backen wollte. Der Händler war freundlich und legte noch eine Birne in den Korb, die er nicht verkaufen konnte.",
    "French": "Le matin, la vieille dame traversa le marché et acheta trois pommes, parce que le soir elle voulait "
    "faire un gâteau. Le marchand était aimable et mit encore dans le panier une poire qui ne se vendait pas.",
    "Spanish": "Por la mañana la anciana cruzó el mercado y compró tres manzanas, porque por la noche quería hacer un "
    "pastel. El vendedor era amable y puso en la cesta una pera más, que ya no se podía vender.",
    "Dutch": "In de ochtend liep de oude vrouw over de markt en kocht drie appels, omdat zij in de avond een taart "
    "wilde bakken. De koopman was vriendelijk en legde nog een peer in de mand die hij niet had verkocht.",
    "Danish": "Om morgenen gik den gamle kone over torvet og købte tre æbler, for hun ville bage en kage om aftenen. "
    "Manden var venlig og lagde en pære i kurven, fordi han ikke kunne få den solgt til byens andre folk.",
    "Italian": "La mattina la vecchia signora attraversò il mercato e comprò tre mele, perché la sera voleva fare una "
    "torta. Il venditore era gentile e mise nel cesto ancora una pera, che non riusciva più a vendere.",
}
ENGLISH = (
    "In the morning the old woman crossed the market and bought three apples, because she wanted to bake a cake that "
    "evening. The seller was friendly, and put a pear which he could not sell into the basket."
)
CONVERSATION = (
    "I don't think you're going to like this. She's been waiting outside since noon, and nobody has told her anything. "
    "We'll have to go and find somebody who can explain what happened. Maybe Tom? He's good with people."
)


def test_function_words_tell_english_from_other_languages() -> None:
    for text in (ENGLISH, ENGLISH.upper(), CONVERSATION):
        assert published_base.english_share(text) > 2 * published_base.MIN_ENGLISH
    for language, text in LANGUAGES.items():
        assert published_base.english_share(text) < published_base.MIN_ENGLISH, language


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("docs/training.md", True),
        ("docs/explain.md", True),
        ("examples/tour.ja.md", False),  # Japanese
        ("llmcli/training/session.py", False),  # source code with English docstrings
        ("llmcli/pages/live/page.js", False),
        ("examples/names.txt", False),  # a list
        ("examples/log.txt", False),
        ("examples/translate.tsv", False),  # a table
        ("examples/food.txt", False),  # English, made of a few sentences
    ],
)
def test_only_english_prose_is_known(name: str, known: bool) -> None:
    assert published_base.is_english_prose(read_corpus([str(ROOT / name)])) is known


def test_code_with_as_many_english_comments_is_not_known(tmp_path: Path) -> None:
    lines = (ROOT / "docs" / "training.md").read_text("utf-8").splitlines()
    code = "".join(
        f"    // {line}\n    if ((state[{i}] & {i * 37}) == 0) {{ x = {i}; }}\n" for i, line in enumerate(lines)
    )
    (tmp_path / "a.c").write_text(code, "utf-8")
    assert published_base.english_share(code) > published_base.MIN_ENGLISH
    assert not published_base.is_english_prose(read_corpus([str(tmp_path / "a.c")]))


def test_the_plan_names_it_once_with_the_command(llm: Llm) -> None:
    text = ROOT / "docs" / "training.md"
    words = ("train", text, "--time", "142s", "-o", "new.safetensors", "--dry-run")
    line = next(line for line in llm(*words).stderr.splitlines() if line.startswith("English prose:"))
    assert "a download of 270 MB" in line
    assert line.endswith(f": llm train {text} -o new.safetensors --time 142s --from smollm2 --lora 8")
    for asks_for_a_new_model in (("--layers", 2), ("--tokenizer", "char")):
        assert "English prose" not in llm(*words, *asks_for_a_new_model).stderr


def test_the_size_of_the_download_is_that_of_its_weights() -> None:
    vocabulary, width, layers, kv, inner = 49_152, 576, 30, 3 * 64, 1_536  # its config.json
    layer = 2 * width * width + 2 * width * kv + 3 * width * inner + 2 * width
    weights = 2 * (vocabulary * width + layers * layer + width)  # in bfloat16
    assert 0 <= published_base.DOWNLOAD_MEGABYTES - weights / 1e6 < 3  # the tokenizer
