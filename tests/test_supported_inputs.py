"""The page of supported inputs says what the batteries say."""
from batteries import page


def test_the_page_is_up_to_date():
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run: python tests/batteries/page.py"


def test_the_page_knows_every_battery():
    batteries = {path.stem for path in page.HERE.glob("*.py")} - {"page"}
    text = page.text()
    assert {"images", "tokenizers", "schedulers"} <= batteries
    for name in batteries:
        assert f"## {page.TITLES[name][0]}\n" in text, f"add {name} to TITLES in page.py"
    assert text.count("\n| ") > 150 and "| grey, 16 bits | read |" in text and "refused: low bits" in text
