from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomaly.errors import SchemaError
from anomaly.schema import NumericField, Place, Schema, check_columns

FULL = Schema(
    time="when",
    entity=(("bank", "card"),),
    event_id="id",
    numeric=(NumericField(name="amount", scale="log", tail="upper"), NumericField(name="tip")),
    categorical=("shop", 'odd "name" with \\ and \n and ü'),
    place=Place(latitude="lat", longitude="lon"),
    label="is_fraud",
    time_zone="Europe/Paris",
    time_unit="ms",
    decimal=",",
)


def test_columns_are_in_a_fixed_order_and_without_the_label() -> None:
    assert FULL.columns() == ["when", "bank", "card", "id", "amount", "tip", *FULL.categorical, "lat", "lon"]
    assert Schema(time="t").columns() == ["t"]


def test_a_schema_is_a_value() -> None:
    assert Schema(**FULL.model_dump()) == FULL
    assert hash(FULL) == hash(FULL.model_copy())
    assert Schema.model_validate_json(FULL.model_dump_json()) == FULL
    with pytest.raises(ValueError, match="frozen"):
        FULL.time = "other"


def test_names_alone_will_do_for_single_columns_and_plain_numbers() -> None:
    loose: dict[str, Any] = {"time": "t", "entity": "card", "numeric": ["amount"], "categorical": "shop"}
    assert Schema(**loose) == Schema(
        time="t", entity=("card",), numeric=(NumericField(name="amount"),), categorical=("shop",)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Schema: the key 'time' is missing"),
        ({"time": "t", "entity": "t"}, "column 't' is used twice, as time and as entity: give it one role"),
        ({"time": "t", "numeric": ["y"], "label": "y"}, "column 'y' is used twice, as numeric and as label"),
        ({"time": "t", "categorical": ["a", "a"]}, "column 'a' is used twice, as categorical and as categorical"),
        ({"time": "t", "place": {"latitude": "a", "longitude": "a"}}, "'a' is used twice, as place.latitude"),
        ({"time": " "}, r"the name of a column is empty \(time\): name a column, or leave the key out"),
        ({"time": "t", "label": ""}, r"the name of a column is empty \(label\)"),
        ({"time": "t", "catgorical": ["a"]}, r"unknown key 'catgorical' \(did you mean 'categorical'\?\)"),
        ({"time": "t", "numeric": [{"name": "a", "scale": "ln"}]}, "numeric.0.*'linear' or 'log', got 'ln'"),
        ({"time": "t", "numeric": [{"scale": "log"}]}, "numeric.0.*'name' is missing"),
        ({"time": "t", "time_zone": "Mars/Olympus"}, "no time zone is called 'Mars/Olympus'; write it like"),
        ({"time": "t", "time_zone": "../etc"}, "no time zone is called"),
        ({"time": "t", "time_zone": ""}, "no time zone is called"),
        ({"time": "t", "time_unit": "h"}, "time_unit: .*'s', 'ms' or 'us', got 'h'"),
        ({"time": "t", "decimal": ";"}, "decimal: .*got ';'"),
        ({"time": 3}, "time: .*string, got 3"),
    ],
)
def test_a_schema_that_does_not_hold_together_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Schema(**arguments)


def test_toml_and_back(tmp_path: Path) -> None:
    path = tmp_path / "anomaly.toml"
    for schema in (FULL, Schema(time="t")):
        path.write_text("[other]\nx = 1\n\n" + schema.to_toml(), encoding="utf-8")
        assert Schema.from_toml(path) == schema


def test_comments_stand_at_the_end_of_their_lines_and_do_not_change_the_schema(tmp_path: Path) -> None:
    comments = {
        "time": "why\nover two lines",
        "place": "where",
        "numeric.amount": "money",
        "categorical.shop": "a # in it",
        "left_out.secret": "a second label",
        "decimal": "a comma",
    }
    text = FULL.to_toml(comments)
    for line in (
        'time = "when"  # why over two lines',
        'place = { latitude = "lat", longitude = "lon" }  # where',
        'name = "amount"  # money',
        '    "shop",  # a # in it',
        "# left out: secret (a second label)",
        'decimal = ","  # a comma',
    ):
        assert line in text.splitlines()
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    assert Schema.from_toml(tmp_path / "a.toml") == FULL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no schema can be read \(No such file or directory\); `anomaly init FILE` writes one"),
        ("time = ", "not a TOML file"),
        ("[scheme]\ntime = 't'\n", r"no \[schema\] table; tables there are: scheme"),
        ("", r"no \[schema\] table; tables there are: none"),
        ("[schema]\ntime = 't'\ntail = 'upper'\n", "unknown key 'tail'"),
    ],
)
def test_a_file_that_holds_no_schema_is_refused_by_name(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "anomaly.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SchemaError, match=message) as caught:
        Schema.from_toml(path)
    assert str(caught.value).startswith(str(path))


def test_missing_columns_are_listed_with_their_role_and_the_closest_name() -> None:
    schema = Schema(time="when", entity=("customer_id",), numeric=(NumericField(name="amount"),), label="fraud")
    there = ["customer", "CUSTOMER_ID", "amout", "when"]
    with pytest.raises(SchemaError) as caught:
        check_columns(schema, there, "may.csv")
    assert str(caught.value) == (
        "may.csv has no columns 'customer_id' (entity; did you mean 'CUSTOMER_ID'?), "
        "'amount' (numeric; did you mean 'amout'?). Columns there are: customer, CUSTOMER_ID, amout, when"
    )


def test_the_label_may_be_absent_and_further_columns_do_not_matter() -> None:
    check_columns(Schema(time="t", label="fraud"), ["x", "t"], "live.csv")


def test_a_table_without_columns_says_so() -> None:
    with pytest.raises(SchemaError, match=r"live has no column 't' \(time\). Columns there are: none"):
        check_columns(Schema(time="t"), [], "live")


def test_each_entity_is_a_view_and_a_key_of_several_columns_is_a_list() -> None:
    loose: dict[str, Any] = {
        "time": "t",
        "entity": ["card", ["bank", "account"]],
        "categorical": ["card", "account", "x"],
    }
    schema = Schema(**loose)
    assert schema.keys == (("card",), ("bank", "account"))
    assert schema.key == ("card",)
    assert schema.view_names == ("card", "bank+account")
    assert schema.columns() == ["t", "card", "bank", "account", "x"]
    assert [view.categorical for view in schema.views] == [("account", "x"), ("card", "x")]
    assert [view.entity for view in schema.views] == [("card",), (("bank", "account"),)]
    assert Schema(time="t", entity=("card",)).views == (Schema(time="t", entity=("card",)),)
    assert Schema(time="t").views == () == Schema(time="t").key
    assert Schema(**{**loose, "entity": [["card"]], "categorical": []}) == Schema(time="t", entity=("card",))


def test_views_survive_toml(tmp_path: Path) -> None:
    path = tmp_path / "anomaly.toml"
    schema = Schema(time="t", entity=("card", ("bank", "account")), categorical=("card",))
    path.write_text(schema.to_toml(), encoding="utf-8")
    assert 'entity = ["card", ["bank", "account"]]\n' in path.read_text(encoding="utf-8")
    assert Schema.from_toml(path) == schema


@pytest.mark.parametrize(
    ("entity", "categorical", "said"),
    [
        (("card", ("card",)), (), "two views are of the same columns"),
        ((("a", "b"), ("b", "a")), (), "two views are of the same columns"),
        (((),), (), "a view without a column"),
        ((("a", "a"),), (), "'a' is used twice"),
        (("card",), ("card",), "'card' is used twice, as entity and as categorical"),
        (("card", "t"), (), "'t' is used twice, as time and as entity"),
    ],
)
def test_views_that_make_no_sense_are_refused(entity: Any, categorical: tuple[str, ...], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        Schema(time="t", entity=entity, categorical=categorical)


def test_a_missing_column_of_two_roles_is_named_once() -> None:
    schema = Schema(time="t", entity=("card", "shop"), categorical=("shop",))
    with pytest.raises(SchemaError, match=r"table has no column 'shop' \(entity\)\. Columns"):
        check_columns(schema, ["t", "card"], "table")
