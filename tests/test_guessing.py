"""What `infer_schema` makes of the first rows of tables that people have."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anomaly.errors import InputError, SchemaError
from anomaly.schema import NumericField, Place, Schema, infer_schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate

ROWS = 400


def money(seed: int = 0, rows: int = ROWS) -> list[float]:
    rng = random.Random(seed)
    return [round(rng.lognormvariate(3, 1), 2) for _ in range(rows)]


def choice(values: list[Any], seed: int = 1, rows: int = ROWS) -> list[Any]:
    rng = random.Random(seed)
    return [rng.choice(values) for _ in range(rows)]


def minutes(rows: int = ROWS) -> list[str]:
    return [f"2024-01-{1 + i // 1440:02} {i // 60 % 24:02}:{i % 60:02}:00" for i in range(rows)]


HANDBOOK = pl.DataFrame(
    {
        "TRANSACTION_ID": range(ROWS),
        "TX_DATETIME": minutes(),
        "CUSTOMER_ID": choice(list(range(150))),
        "TERMINAL_ID": choice(list(range(40)), 2),
        "TX_AMOUNT": money(),
        "TX_FRAUD": [0] * ROWS,
        "TX_FRAUD_SCENARIO": [0] * ROWS,
    }
)
AMOUNT = {"scale": "log", "tail": "upper"}


@pytest.mark.parametrize("form", ["typed", "text", "times", "few"])
def test_the_handbooks_columns(form: str) -> None:
    frame = HANDBOOK.cast(pl.String) if form == "text" else HANDBOOK
    frame = frame.with_columns(pl.col("TX_DATETIME").str.to_datetime()) if form == "times" else frame
    frame = frame.head(5) if form == "few" else frame
    schema, reasons = infer_schema(frame)
    assert schema == Schema(
        time="TX_DATETIME",
        entity=("CUSTOMER_ID",),
        event_id="TRANSACTION_ID",
        numeric=(NumericField(name="TX_AMOUNT", scale="log", tail="upper"),),
        categorical=("TERMINAL_ID",),
        label="TX_FRAUD",
    )
    assert "a label is never a feature" in reasons["left_out.TX_FRAUD_SCENARIO"]
    assert {"time", "entity", "event_id", "label", "numeric.TX_AMOUNT", "categorical.TERMINAL_ID"} <= reasons.keys()


def test_a_plain_series() -> None:
    frame = pl.DataFrame({"timestamp": minutes(), "value": [str(20 + i % 7 / 10) for i in range(ROWS)]})
    schema, reasons = infer_schema(frame)
    assert schema == Schema(time="timestamp", numeric=(NumericField(name="value", scale="linear", tail="both"),))
    assert "one sequence" in reasons["entity"]


def test_logins() -> None:
    frame = pl.DataFrame(
        {
            "user": choice(["ann", "bob", "eve"]),
            "ip": choice([f"10.0.0.{i}" for i in range(50)], 2),
            "ts": [1_700_000_000 + 60 * i for i in range(ROWS)],
            "success": choice([True, False], 3),
        }
    )
    schema, _ = infer_schema(frame)
    assert schema == Schema(time="ts", entity=("user",), categorical=("ip", "success"))


def test_card_payments_with_people_and_two_places() -> None:
    card = choice([4_000_000_000_000_000 + i for i in range(20)])
    frame = pl.DataFrame(
        {
            "": range(ROWS),
            "trans_date_trans_time": minutes(),
            "cc_num": card,
            "merchant": choice([f"shop {i}" for i in range(60)], 2),
            "category": choice(["fuel", "food", "web"], 3),
            "amt": money(),
            "gender": ["FM"[number % 2] for number in card],
            "lat": [number % 60 + 0.5 for number in card],
            "long": [-(number % 90) - 0.5 for number in card],
            "dob": [f"19{50 + number % 40}-03-09" for number in card],
            "trans_num": [f"{random.Random(i).getrandbits(128):032x}" for i in range(ROWS)],
            "unix_time": range(1_325_376_018, 1_325_376_018 + ROWS),
            "merch_lat": [random.Random(i).uniform(30, 40) for i in range(ROWS)],
            "merch_long": [random.Random(-i).uniform(-100, -80) for i in range(ROWS)],
            "is_fraud": [0] * ROWS,
        }
    )
    schema, reasons = infer_schema(frame)
    assert schema == Schema(
        time="trans_date_trans_time",
        entity=("cc_num",),
        event_id="trans_num",
        numeric=(NumericField(name="amt", scale="log", tail="upper"),),
        categorical=("merchant", "category"),
        place=Place(latitude="merch_lat", longitude="merch_long"),
        label="is_fraud",
    )
    left_out = {key.removeprefix("left_out.") for key in reasons if key.startswith("left_out.")}
    assert left_out == {"gender", "lat", "long", "dob", "unix_time"}


@pytest.mark.parametrize("text", [True, False])
def test_the_simulators_columns(text: bool) -> None:
    frame, _ = simulate(customers=20, days=10)
    if text:
        frame = frame.with_columns(pl.col("time").dt.to_string("iso")).cast(pl.String)
    schema, _ = infer_schema(frame)
    alike = {"categorical": tuple(sorted(schema.categorical))}
    assert schema.model_copy(update=alike) == SIMULATED_SCHEMA.model_copy(
        update={"categorical": tuple(sorted(SIMULATED_SCHEMA.categorical))}
    )


@pytest.mark.parametrize("name", ["is_fraud", "isFraud", "Class", "label", "target", "fraud", "Label", "is_anomaly"])
def test_labels_by_their_usual_names(name: str) -> None:
    frame = pl.DataFrame({"time": minutes(), "card": choice(["a", "b"]), name: choice([0, 1], 5)})
    schema, _ = infer_schema(frame)
    assert schema.label == name
    assert schema.columns() == ["time", "card"]


def test_only_the_flag_is_the_label_and_the_rest_about_fraud_is_left_out() -> None:
    frame = pl.DataFrame(
        {"time": minutes(), "fraud_score": money(), "isFlaggedFraud": [0] * ROWS, "isFraud": [0] * ROWS}
    )
    schema, reasons = infer_schema(frame)
    assert schema.label == "isFraud"
    assert schema.columns() == ["time"]
    assert {"left_out.fraud_score", "left_out.isFlaggedFraud"} <= reasons.keys()


def test_words_that_only_sound_like_a_label_are_no_label() -> None:
    frame = pl.DataFrame({"time": minutes(), "target_account": choice(["a", "b", "c"]), "travel_class": choice([1, 2])})
    assert infer_schema(frame)[0].label is None


def test_of_several_ids_the_one_that_repeats_is_the_entity() -> None:
    frame = pl.DataFrame(
        {
            "step": [i // 50 for i in range(ROWS)],
            "amount": money(),
            "nameOrig": [f"C{i}" for i in range(ROWS)],
            "nameDest": choice([f"C{i}" for i in range(30)]),
        }
    )
    schema, reasons = infer_schema(frame)
    assert schema.entity == ("nameDest",)
    assert "also possible: nameOrig" in reasons["entity"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("device_id", "customer_id"), "customer_id"),
        (("merchant_id", "account"), "account"),
        (("terminal", "machine"), "machine"),
        (("card_type", "sensorId"), "sensorId"),
        (("user_agent", "shop_id"), "shop_id"),
    ],
)
def test_people_come_before_things_and_things_before_partners(names: tuple[str, str], expected: str) -> None:
    frame = pl.DataFrame({"time": minutes(), **{name: choice(["a", "b", "c"], i) for i, name in enumerate(names)}})
    assert infer_schema(frame)[0].entity == (expected,)


@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (1000, "ms"), (1_000_000, "us")])
@pytest.mark.parametrize("text", [True, False])
def test_the_unit_of_an_epoch_is_told_from_its_size(factor: int, unit: str, text: bool) -> None:
    frame = pl.DataFrame({"ts": [(1_700_000_000 + i) * factor for i in range(ROWS)], "value": money()})
    schema, reasons = infer_schema(frame.cast(pl.String) if text else frame)
    assert (schema.time, schema.time_unit) == ("ts", unit)
    assert "since 1970" in reasons["time"]


def test_times_counted_from_a_start_of_their_own() -> None:
    schema, reasons = infer_schema(
        pl.DataFrame({"Time": [float(i) for i in range(ROWS)], "V1": money(), "Class": [0] * ROWS})
    )
    assert (schema.time, schema.time_unit, schema.label) == ("Time", "s", "Class")
    assert "hour and weekday mean nothing" in reasons["time"]


def test_a_decimal_comma_is_noticed() -> None:
    frame = pl.DataFrame({"zeit": minutes(8), "konto": ["a", "b"] * 4, "betrag": ["1.234,50", "3,5"] * 4})
    schema, reasons = infer_schema(frame)
    assert (schema.decimal, schema.entity) == (",", ("konto",))
    assert [field.name for field in schema.numeric] == ["betrag"]
    assert "decimal comma" in reasons["decimal"]


def test_numbers_are_shaped_by_name_and_spread() -> None:
    rng = random.Random(0)
    frame = pl.DataFrame(
        {
            "time": minutes(),
            "total_price": money(),
            "temperature": [rng.gauss(20, 3) for _ in range(ROWS)],
            "megabytes": [rng.lognormvariate(0, 3) for _ in range(ROWS)],
            "pin_tries": choice([1, 2, 3]),
            "mcc": choice([5411, 5812, 7995, *range(1000, 1050)]),
        }
    )
    schema, _ = infer_schema(frame)
    assert [(field.name, field.scale, field.tail) for field in schema.numeric] == [
        ("total_price", "log", "upper"),
        ("temperature", "linear", "both"),
        ("megabytes", "log", "both"),
    ]
    assert schema.categorical == ("pin_tries", "mcc")


def test_what_says_nothing_of_an_event_is_left_out_with_the_reason() -> None:
    person = choice(["a", "b", "c", "d"])
    frame = pl.DataFrame(
        {
            "time": minutes(),
            "user": person,
            "city": [{"a": "Bonn", "b": "Lyon"}.get(name, "Rome") for name in person],
            "device_id": [f"phone of {name}" for name in person],
            "currency": ["EUR"] * ROWS,
            "comment": [f"text number {i}" for i in range(ROWS)],
            "nothing": [None] * ROWS,
            "items": [[1]] * ROWS,
        }
    )
    schema, reasons = infer_schema(frame)
    assert schema.categorical == ("device_id",)  # an id that is steady today is worth watching: it may change
    assert reasons["left_out.city"] == "the same in all events of each user: it says nothing of an event"
    assert reasons["left_out.currency"] == "the same in all of 400 values"
    assert "nearly every value differs" in reasons["left_out.comment"]
    assert {"left_out.nothing", "left_out.items"} <= reasons.keys()


def test_without_a_time_the_columns_are_listed() -> None:
    with pytest.raises(SchemaError, match=r"no column reads as a time.* Columns there are: amount, shop"):
        infer_schema(pl.DataFrame({"amount": [1.5, 2.5], "shop": ["a", "b"]}))


def test_without_rows_there_is_nothing_to_guess_from() -> None:
    with pytest.raises(InputError, match="the table has none"):
        infer_schema(pl.DataFrame({"time": []}))


def test_every_guess_can_be_written_and_read_back(tmp_path: Path) -> None:
    schema, reasons = infer_schema(HANDBOOK)
    path = tmp_path / "anomaly.toml"
    path.write_text(schema.to_toml(reasons), encoding="utf-8")
    assert Schema.from_toml(path) == schema
    unexplained = [line for line in schema.to_toml(reasons).splitlines() if "=" in line and "#" not in line]
    assert [line.split(" =")[0] for line in unexplained] == ["categorical", "scale", "tail"]
