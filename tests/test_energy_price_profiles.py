"""Hardware profiles: what is shipped has a source, what has none is refused, and every fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stdeploy.energy.profile import (
    load_profile,
    load_profiles,
    parse,
    profile_table,
    profile_text,
    refused,
    shipped,
)
from stdeploy.errors import UserError

GOOD = """
title = "A chip"
kind = "chip"
scope = "per term"
node = "12 nm"
voltage = "0.7 V"
status = "measured"
source = "somebody, somewhere"
url = "https://example.org"
solidity = "fair"
checked = "primary"

[constants.synop]
value = 2500
unit = "fJ"
includes = "one weight read and one addition"
"""


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_profile_loads_and_says_where_its_figures_come_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.status in ("measured", "simulated", "estimate", "spec")
    assert profile.url.startswith("https://") and len(profile.source) > 20
    assert all(constant.si > 0 and constant.includes for constant in profile.constants.values())
    assert 1e-15 < profile.ac <= profile.mac < 1e-9


@pytest.mark.parametrize("name", shipped())
def test_a_profile_as_text_says_everything_once(name: str) -> None:
    profile = load_profile(name)
    text = profile_text(profile)
    for fact in (
        profile.node,
        profile.voltage,
        profile.status,
        profile.source,
        profile.solidity,
        profile.checked,
    ):
        assert fact in text
    for constant in profile.constants.values():
        assert f"{constant.value:g} {constant.unit}  {constant.includes}" in text
        assert constant.source in text
    assert text.count(profile.solidity) == text.count(profile.url) == 1


def test_prices_are_those_of_the_sources() -> None:
    horowitz, jouppi = load_profiles(["45nm-fp32", "7nm-int8"])
    assert horowitz.ac == pytest.approx(0.9e-12) and horowitz.mac == pytest.approx(4.6e-12)
    assert horowitz.joules("sram_8k") == pytest.approx(1.25e-12)  # 10 pJ for 64 bits, in bytes
    assert horowitz.joules("dram") == pytest.approx(162.5e-12)
    assert jouppi.mac == pytest.approx(0.077e-12)
    loihi, prototype = load_profiles(["loihi1", "spinnaker2-prototype"])
    assert loihi.joules("neuron_active") == pytest.approx(81e-12)
    assert prototype.joules("neuron_active") == pytest.approx(2.19e-9)


def test_a_bound_is_rated_power_over_peak_rate_and_two_operations_a_mac() -> None:
    h100 = load_profile("h100-fp16")
    assert h100.mac == pytest.approx(2 * 700 / 989.4e12)


def test_users_profile_is_read_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "mychip.toml"
    path.write_text(GOOD)
    profile = load_profile(str(path))
    assert profile.name == "mychip" and profile.ac == pytest.approx(2.5e-12)
    assert profile.status == "user-supplied (measured)"
    assert profile.to_dict()["constants"]["synop"]["unit"] == "fJ"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('kind = "chip"', 'kind = "toaster"', "kind"),
        ('kind = "chip"', 'kind = ["chip"]', "kind"),
        ('title = "A chip"', "", "title"),
        ('source = "somebody, somewhere"', "", "source"),
        ('url = "https://example.org"', 'url = "  "', "url"),
        ('status = "measured"', 'status = "heard"', "status"),
        ('scope = "per term"', "", "scope"),
        ('node = "12 nm"', 'node = "12 nm"\ncolour = "red"', "colour"),
        ("[constants.synop]", "[constants.spike]", "constants.synop"),
        ("[constants.synop]", "[constants.dram]\nvalue=1\n[constants.synop]", "constants.dram"),
        ("value = 2500", "value = -1", "constants.synop.value"),
        ("value = 2500", "value = 0", "constants.synop.value"),
        ("value = 2500", "value = nan", "constants.synop.value"),
        ("value = 2500", f"value = 1{'0' * 400}", "constants.synop.value"),
        ("value = 2500", "value = true", "constants.synop.value"),
        ("value = 2500", 'value = "2.5"', "constants.synop.value"),
        ("value = 2500", "", "constants.synop.value"),
        ('unit = "fJ"', 'unit = "pJ/B"', "constants.synop.unit"),
        ('unit = "fJ"', "unit = [1]", "constants.synop.unit"),
        ('unit = "fJ"', 'unit = "fJ"\nvolume = 3', "constants.synop.volume"),
        ('unit = "fJ"', 'unit = "fJ"\nsource = ""', "constants.synop.source"),
        ("includes =", "excludes =", "constants.synop.excludes"),
    ],
)
def test_a_fault_is_named_with_file_and_key(old: str, new: str, key: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(UserError) as caught:
        parse("mychip", text, "mychip.toml")
    assert caught.value.message.startswith(f"mychip.toml: {key} ")
    assert caught.value.hint


def test_one_price_of_neuron_updates_asks_for_the_other() -> None:
    text = GOOD + '\n[constants.neuron_active]\nvalue = 1\nunit = "pJ"\nincludes = "an update"\n'
    with pytest.raises(UserError, match="only one kind of neuron update"):
        parse("mychip", text, "mychip.toml")


def test_a_whole_chips_price_has_no_parts() -> None:
    text = GOOD.replace("per term", "whole chip")
    assert parse("mychip", text, "mychip.toml").scope == "whole chip"
    more = text + '\n[constants.spike]\nvalue = 1\nunit = "pJ"\nincludes = "a spike"\n'
    with pytest.raises(UserError, match="price parts of a whole chip"):
        parse("mychip", more, "mychip.toml")


def test_constants_that_are_no_tables_are_a_fault() -> None:
    head = GOOD.split("[constants")[0]
    with pytest.raises(UserError, match="constants is not a set of tables"):
        parse("mychip", "constants = 3\n" + head, "mychip.toml")


def test_files_that_are_no_profiles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("title = ")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    (tmp_path / "long.toml").write_text("a = " + "9" * 5000)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
        load_profile(str(tmp_path / "bad.toml"))
    for name in ("deep.toml", "long.toml", "binary.toml", "absent.toml", "."):
        with pytest.raises(UserError):
            load_profile(str(tmp_path / name))
    with pytest.raises(UserError, match="no profile 'loihi3'") as caught:
        load_profile("loihi3")
    assert "45nm-fp32" in (caught.value.hint or "")


@pytest.mark.parametrize("name", refused())
def test_chips_without_a_published_figure_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=r"has no price: .*(publish|source)") as caught:
        load_profiles([name])
    assert "--synop-pj" in (caught.value.hint or "")
    (profile,) = load_profiles([name], synop_pj=1.5)
    assert profile.ac == pytest.approx(1.5e-12)
    assert profile.status == profile.source == "user-supplied" and "user-supplied" in profile.title


@pytest.mark.parametrize("value", [0.0, -2.0, float("nan"), float("inf")])
def test_a_users_price_is_a_positive_number(value: float) -> None:
    with pytest.raises(UserError, match="is not an energy"):
        load_profiles(["speck"], synop_pj=value)


def test_a_users_price_belongs_to_one_chip() -> None:
    for names in (["45nm-fp32"], ["speck", "xylo"]):
        with pytest.raises(UserError, match="price of one chip"):
            load_profiles(names, synop_pj=1.0)


def test_the_documents_table_is_the_data() -> None:
    """Written by `stdeploy energy --profiles --markdown FILE`, between the two marks."""
    text = (Path(__file__).resolve().parent.parent / "docs" / "energy.md").read_text()
    block = text.split("<!-- profiles -->\n")[1].split("\n<!-- /profiles -->")[0]
    _, table = profile_table(load_profiles(shipped())).markdown().split("\n\n", 1)
    assert block == table.rstrip()
