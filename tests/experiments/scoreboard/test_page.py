import re

from ssm_metarl_gym.experiments.scoreboard.figures import Table
from ssm_metarl_gym.experiments.scoreboard.page import Page, write_markdown, write_page


def page_of(table, folder):
    write_page(Page("Title", ["Two seeds.", "Less < more."], [table], {}, "command"), folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_numbers_are_tinted_by_their_place_in_their_column(tmp_path):
    table = Table(
        "Group: title", ["", "one", "two"], [["a", "-30.0", "99.0"], ["b", "", "100.0"], ["c", "10.0*", ""]], True
    )
    page = page_of(table, tmp_path)
    cells = re.findall(r'--share: ([\d.]+)">([-\d.*]+)<', page)
    # What lies closely together is hardly told apart: a tenth of 100 is the least width.
    assert cells == [("0.00", "-30.0"), ("0.90", "99.0"), ("1.00", "100.0"), ("1.00", "10.0*")]


def test_only_columns_without_a_number_are_text(tmp_path):
    page = page_of(Table("Group: title", ["", "agent", "mean"], [["a", "told", "1.0 [0.5, 1.5]"]]), tmp_path)
    assert '<td class="text">told</td><td><b>1.0</b> <small>[0.5, 1.5]</small></td>' in page
    assert 'class="tinted"' not in page


def test_an_introduction_is_a_list_and_a_group_has_its_picture(tmp_path):
    table = Table("Group: title", ["", "mean"], [["a", "1.0"]])
    page = page_of(table, tmp_path)
    assert "<p>Two seeds.</p>" in page
    assert "<ul><li>Less &lt; more.</li></ul></details>" in page
    pictures = {"Group": tmp_path / "returns-mine:GROUP.png"}
    tables = [table, Table("Costs", ["", "s"], [])]
    write_markdown(Page("Title", ["One.", "Two."], tables, pictures, "do"), tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and "|" not in line] == [
        *("# Title", "- One.", "- Two.", "Made by `do`.", "## Group"),
        *(
            "![Group: mean return and 95 % interval, and each seed](./returns-mine%3AGROUP.png)",
            "### Title",
            "## Costs",
            "### Costs",
        ),
    ]


def test_names_are_escaped_and_may_break_between_their_words(tmp_path):
    page = page_of(
        Table("Mine & yours: title", ["", "CartPolePolarity", "a<b"], [["m:<make>", "1.0", "nan"]], True), tmp_path
    )
    assert '<th scope="col">Cart<wbr>Pole<wbr>Polarity</th><th scope="col" class="text">a&lt;b</th>' in page
    assert '<td class="text">m:&lt;make&gt;</td>' in page
    assert '<h2 id="mine---yours">Mine &amp; yours</h2>' in page
