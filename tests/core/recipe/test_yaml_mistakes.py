"""A file that is no YAML: the message names the line, the mistake and how to write it, not the parser's grammar."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdq_core.errors import RecipeError
from kdq_core.recipe.strict_yaml import parse


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    return str(caught.value)


SAME_COLUMN = "keys of one section begin in the same column"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n\tworkload: y", "2: a tab indents this line; write spaces, two for each level"),
        ("teacher:\n  fit:\t1", "2: a tab stands in this line; write spaces"),
        ("name: x\nworkload digits\nseed: 1", "2: no colon stands in 'workload digits'; write 'workload: digits'"),
        ("name: x\nworkload = digits", "2: no colon stands in 'workload = digits'; write 'workload: digits'"),
        ("name: x\nfoo  # bar", "2: no colon stands in 'foo'; write 'foo: VALUE'"),
        ("name: x\nworkload:digits\n",
         "2: no space stands after the colon of 'workload:digits'; write 'workload: digits'"),
        ("name:x\n\nworkload: digits", "1: no space stands after the colon of 'name:x'; write 'name: x'"),
        ("a: b: c", "1: a second colon stands in this line; put the value in quotes if it is text: a: 'b: c'"),
        ("- a: b: c", "1: a second colon stands in this line; put the value in quotes if it is text: a: 'b: c'"),
    ],
)  # fmt: skip
def test_a_tab_and_a_colon_are_named(text: str, message: str) -> None:
    assert refusal(text) == f"r.yaml:{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n  workload: digits",
         f"2: this line is indented by 2, but the line above ends with a value; {SAME_COLUMN}"),
        ("teacher:\n    fit: 1\n  seed: 2", f"3: this line is indented by 2, and no section above is; {SAME_COLUMN}"),
        ("  name: x\nworkload: d", f"2: this line is indented by 0, and no section above is; {SAME_COLUMN}"),
        ("a:\n  - b\n - c",
         "3: this line is indented by 1, and no list above is; items of one list begin in the same column"),
        ("name: x\n- a", "2: a list item stands among keys; indent it below its key, or leave '- ' out"),
        ("- a\nb: 1",
         "2: a key stands among the items of a list; indent it into the item above, or begin it further left"),
        ("a: - b",
         "1: a list begins in the line of its key; write its items below, each after '- ', or write [a, b]"),
        ("a: 1\n: 2", "2: no key stands before this colon; write 'key: value'"),
    ],
)  # fmt: skip
def test_a_wrong_indentation_is_named(text: str, message: str) -> None:
    assert refusal(text) == f"r.yaml:{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 'x\nworkload: digits", "1: the quote (') that opens here is not closed; write it after the text too"),
        ('a: 1\nname: "x\n', '2: the quote (") that opens here is not closed; write it after the text too'),
        ("a: 'b'c", "1: text follows a closing quote; put the whole value in one pair of quotes"),
        ("name: [", "1: the bracket '[' that opens here is not closed; write ']' after what it holds"),
        ("a: 1\nb: {c: [", "2: the bracket '[' that opens here is not closed; write ']' after what it holds"),
        ("a: [b, c\n", "1: the bracket '[' that opens here is not closed; write ']' after what it holds"),
        ("a: {b: 1\n", "1: the bracket '{' that opens here is not closed; write '}' after what it holds"),
        ("a: [b,\n  c\nd: 1\n", "1: the bracket '[' that opens here is not closed before line 3, or a comma is missing "
         "there; write ']' after what it holds"),
        ("a: [1, 2}", "1: '}' closes what '[' opens; write ']'"),
        ("a: {b: 1 c: 2}", "1: a comma is missing in '{b: 1 c'; write one between two values"),
        ("a: [b]]", "1: ']' stands where none is open; leave it out, or use quotes"),
        ("a: ]", "1: no value begins with ']'; leave it out, or put the value in quotes"),
    ],
)  # fmt: skip
def test_an_open_quote_or_bracket_is_named_where_it_opens(text: str, message: str) -> None:
    assert refusal(text) == f"r.yaml:{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: {*.head: skip}",
         "1: '*' begins an alias in YAML; put text that begins with it in quotes, as in '*.head'"),
        ("a: &", "1: '&' begins an anchor in YAML; put text that begins with it in quotes, as in '&'"),
        ("a: !!", "1: '!' begins a tag in YAML; put text that begins with it in quotes, as in '!!'"),
        ("a: @x", "1: no value begins with '@'; put the value in quotes"),
        ("a: ? b", "1: no value begins with '?'; put the value in quotes"),
        ("%x", "1: '%' begins a directive; leave the line out, or put the value in quotes"),
        ("%YAML 9.1\n--- a", "1: '%' begins a directive; leave the line out, or put the value in quotes"),
        ('a: "\\q"', "1: a backslash in double quotes begins an escape, and YAML knows none of this form; write two "
         "backslashes, or use single quotes"),
        ("a: |x\n  b", "1: text that '|' or '>' announces begins in the next line; write it there, indented"),
    ],
)  # fmt: skip
def test_a_sign_with_a_meaning_in_yaml_is_named(text: str, message: str) -> None:
    assert refusal(text) == f"r.yaml:{message}"


PARTS = st.sampled_from([
    "a", "b: ", ": ", ":", "- ", "\n", "\n  ", "\t", "'", '"', "[", "]", "{", "}", ", ", "*", "&x ", "!t ", "? ", "|",
    ">", "%", "@", "---\n", "...\n", "# c", "\\q", "1", "\u2028", "é",
])  # fmt: skip


@given(st.lists(PARTS, max_size=14).map("".join))
def test_no_mistake_is_told_in_the_words_of_the_parser(text: str) -> None:
    try:
        list(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        told = refusal(text)
        assert re.match(r"r\.yaml:\d+: ", told)
        assert not re.search(r"<[a-z ]+>|token|node|scalar|stream", told)
