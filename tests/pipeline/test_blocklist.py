import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.blocklist import DOMAIN, URL, parse_blocklist, read_blocklist
from pipeline.core.errors import UserError

LINES = """\
# a comment
bad.example
.below.test   # and another
*.wild.test
MÜLLER.test
site.test/forum
https://www.site2.test/a/b/
site.test/with space
site.test/p?x=1
192.0.2.7
"""


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://bad.example/", DOMAIN),
        ("https://www.deep.bad.example:8080/x", DOMAIN),
        ("https://notbad.example/", 0),
        ("https://bad.example.org/", 0),
        ("http://a.below.test/", DOMAIN),
        ("http://wild.test./", DOMAIN),
        ("http://xn--mller-kva.test/", DOMAIN),
        ("http://192.0.2.7/x", DOMAIN),
        ("http://site.test/forum", URL),
        ("http://www.site.test/forum/thread?id=1", URL),
        ("http://site.test/forums", 0),
        ("http://site.test/", 0),
        ("http://www.site2.test/a/b/c", URL),
        ("http://site.test/with%20space/x", URL),
        ("http://site.test/p?x=1", URL),
        ("http://site.test/p?x=2", 0),
        ("not a url", 0),
    ],
)
def test_by_hand(url: str, found: int):
    assert parse_blocklist(LINES.splitlines(), "list").match(url) == found


def test_an_empty_list_blocks_nothing():
    assert parse_blocklist([], "list").match("http://a.test/") == 0


NAMES = st.lists(st.sampled_from(["a", "b", "cc"]), min_size=1, max_size=4)


@given(st.lists(NAMES, max_size=4), NAMES, st.lists(st.sampled_from(["x", "yy"]), max_size=4))
def test_domains_are_what_brute_force_finds(listed, labels, path):
    host = ".".join([*labels, "test"])
    entries = [".".join([*labels, "test"]) for labels in listed]
    expected = any(host == entry or host.endswith("." + entry) for entry in entries)
    url = f"http://{host}/{'/'.join(path)}"
    assert parse_blocklist(entries, "list").match(url) == (DOMAIN if expected else 0)


def test_a_deep_path_costs_a_bounded_number_of_look_ups():
    blocklist = parse_blocklist(["a.test/x"], "list")
    assert blocklist.match("http://a.test" + "/y" * 100_000) == 0
    assert blocklist.match("http://a.test/x" + "/y" * 100_000) == URL


@pytest.mark.parametrize("line", ["/path/only", "two words.test", "me@a.test", "a.test:80/x"])
def test_a_line_that_is_no_domain_is_named(line: str):
    with pytest.raises(UserError, match="line 2 begins with no domain"):
        parse_blocklist(["ok.test", line], "list")


def test_a_file(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"a.test\r\n# caf\xe9\n")
    assert read_blocklist(str(path))[0].match("http://a.test/") == DOMAIN
    path.write_bytes(b"a.test\nb.test\xff\n")
    with pytest.raises(UserError, match="line 2"):
        read_blocklist(str(path))
    with pytest.raises(UserError, match="nowhere"):
        read_blocklist(str(tmp_path / "nowhere"))
