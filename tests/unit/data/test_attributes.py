"""Sex and age as tables write them."""

import pytest

from mediffusion_core.data.attributes import UNKNOWN, age_band_of, attributes_of, sex_of


@pytest.mark.parametrize(
    ("cell", "band"),
    [
        ("0", "0-17"),
        ("17.9", "0-17"),
        ("18", "18-39"),
        ("58.0", "40-59"),
        ("058Y", "40-59"),
        ("018M", "0-17"),
        (" 79 ", "60-79"),
        ("80", "80 and over"),
        ("412", UNKNOWN),
        ("-3", UNKNOWN),
        ("nan", UNKNOWN),
        ("", UNKNOWN),
        ("1980-02-03", UNKNOWN),
    ],
)
def test_an_age_is_read_in_years_and_in_the_form_of_dicom(cell: str, band: str) -> None:
    assert age_band_of(cell) == band


def test_a_sex_is_read_as_a_letter_or_a_word() -> None:
    assert [sex_of(cell) for cell in ("F", "male", " m", "O", "")] == [
        "female",
        "male",
        "male",
        UNKNOWN,
        UNKNOWN,
    ]


def test_cells_that_are_not_read_are_counted_and_not_repeated() -> None:
    attributes, notes = attributes_of({"sex": ["F", "Anna", ""], "age": ["7", "", "9"]})
    assert attributes["sex"] == ("female", UNKNOWN, UNKNOWN)
    (note,) = notes
    assert note.text.startswith("1 images have a sex that is not read")
    assert "Anna" not in note.text


def test_a_table_may_say_that_it_does_not_know() -> None:
    cells = {
        "sex": ["unknown", "Unknown ", "O", "", "F"],
        "age": ["nan", "N/A", "", "unknown", "7"],
    }
    attributes, notes = attributes_of(cells)
    assert attributes["sex"] == (*[UNKNOWN] * 4, "female")
    assert attributes["age"] == (*[UNKNOWN] * 4, "0-17")
    assert notes == ()
