"""Settings: read from the environment, wrong ones named, and declared in one place."""

import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import pars
from pars.cli.main import commands
from pars.errors import ParsError
from pars.serving.settings import Settings, declared_settings, settings_table, unknown_variables

ROOT = Path(__file__).parents[1]
VARIABLES = {it.variable for it in declared_settings()}


def test_settings_come_from_the_environment() -> None:
    """Each field has its PARS_* variable; what the caller passes wins over it."""
    environ = {"PARS_MAX_OVERTAKE_S": "inf", "PARS_MAX_PROMPTS": "3", "PARS_OBEY_LIMITS": "off"}
    made = Settings.from_env(environ, max_prompts=4, engine=None)
    assert (made.max_overtake_s, made.max_prompts, made.obey_limits) == (math.inf, 4, False)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PARS_BUDGET_MS", "fast", "'fast' is not a number"),
        ("PARS_MAX_PROMPTS", "1.5", "'1.5' is not a whole number"),
        ("PARS_OBEY_LIMITS", "maybe", "'maybe' is not 0 or 1"),
        ("PARS_MAX_OVERTAKE_S", "-1", "PARS_MAX_OVERTAKE_S must be from 0"),
        ("PARS_ENGINE", "llama", "is not one of auto, vllm"),
        ("PARS_ENGINE", "sglang-low", "did you mean sglang-low-first"),
        ("PARS_ENGINE", "vLLM", "did you mean vllm"),
        ("PARS_MAX_BODY_BYTES", "0", "PARS_MAX_BODY_BYTES: must be 1 or more, not 0"),
        ("PARS_BUDGET_MS", "inf", "PARS_BUDGET_MS: must be 0 or more"),
        ("PARS_MAX_WAIT_MS", "nan", "PARS_MAX_WAIT_MS: must be 0 or more"),
        ("PARS_PRIORITY_BITS", "16", "16 is not one of 32, 64"),
        ("PARS_DRIFT_LIMIT", "2", "PARS_DRIFT_LIMIT: must be from -1 to less than 1"),
        ("PARS_OUTCOME_REDACT", "re", "PARS_OUTCOME_REDACT: 're' is not package.module:function"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(name: str, value: str, problem: str) -> None:
    """A setting that makes no sense stops the start, and the message says what would be right."""
    with pytest.raises(ParsError, match=problem):
        Settings.from_env({name: value})


def test_a_wrong_option_is_named_as_an_option() -> None:
    """What was given on the command line is not called a variable."""
    with pytest.raises(ParsError, match=r"^--max-overtake-s must be from 0"):
        Settings.from_env({"PARS_MAX_OVERTAKE_S": "30"}, max_overtake_s=-1.0)


def test_wrong_networks_are_refused() -> None:
    """Trusted proxies must be given in CIDR form."""
    with pytest.raises(ParsError, match="want CIDR"):
        Settings(trusted_proxies="10.0.0.0/8, nginx").trust()


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("PARS_MAX_OVERTAKE", "PARS_MAX_OVERTAKE_S"),
        ("PARS_RANKER_DIR", "PARS_RANKER"),
        ("PARS_APIKEYS", "PARS_API_KEYS"),
        ("PARS_OUTCOMES_PROMPTS", "PARS_OUTCOME_PROMPTS"),
        ("pars_engine", "PARS_ENGINE"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest(misspelt: str, meant: str) -> None:
    """Its value is not: it may be a secret."""
    [line] = unknown_variables({misspelt: "a secret", "PARS_ENGINE": "vllm", "PATH": "/bin"})

    assert line.startswith(f"{misspelt} is not a setting")
    assert line.endswith(f": did you mean {meant}?")
    assert "secret" not in line


def test_a_variable_that_is_near_to_none_is_named_alone() -> None:
    """No guess is better than a wild one."""
    assert unknown_variables({"PARS_QQ": ""}) == [
        "PARS_QQ is not a setting of pars and has no effect"
    ]


def test_known_variables_are_not_named() -> None:
    """Nor what Kubernetes sets for services called "pars" and "pars-gateway"."""
    addresses = [
        "PARS_SERVICE_HOST",
        "PARS_SERVICE_PORT",
        "PARS_SERVICE_PORT_HTTP",
        "PARS_PORT",
        "PARS_PORT_8100_TCP",
        "PARS_PORT_8100_TCP_ADDR",
        "PARS_GATEWAY_SERVICE_HOST",
        "PARS_GATEWAY_PORT_80_TCP_PROTO",
    ]

    assert unknown_variables(dict.fromkeys([*VARIABLES, *addresses], "x")) == []


def test_secrets_are_not_shown() -> None:
    """A printed Settings tells neither keys nor the secret of trusted callers."""
    shown = repr(Settings(api_keys="sesame", trusted_secret="open"))

    assert "sesame" not in shown
    assert "open" not in shown


def test_every_variable_that_a_page_or_a_module_names_is_a_setting() -> None:
    """A variable read or promised elsewhere would be called misspelt."""
    sources = [*Path(pars.__file__).parent.rglob("*.py"), ROOT / "README.md"]
    sources += (ROOT / "docs").glob("*.md")
    named = {
        name
        for path in sources
        for name in re.findall(r"\bPARS_[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8"))
        if path.name != "settings.py"
    }

    of_tests = {"PARS_SHARED", "PARS_FUZZ_S"}  # where prompts lie; how long the fuzzer runs
    assert named - VARIABLES <= of_tests


def test_options_of_the_gateway_say_their_variable_and_default() -> None:
    """Both come from the setting's declaration."""
    text = " ".join(CliRunner().invoke(commands, ["gateway", "--help"]).stdout.split())

    shown = {"engine": "auto", "max_overtake_s": "none", "ranker": "the bundled one"}
    for name, default in shown.items():
        [it] = [it for it in declared_settings() if it.name == name]
        assert it.option in text
        assert f"[default: {it.variable}, else {default}]" in text


def test_the_table_has_a_row_a_setting() -> None:
    """`docs/generate.py` puts it into docs/serving.md; test_docs.py sees that it is current."""
    assert settings_table().count("\n") == len(VARIABLES) + 1
    assert "| `PARS_MAX_SLOWDOWN` | 1.33 | R:" in settings_table()


def test_a_settings_help_can_be_read_by_itself() -> None:
    """It says what it counts or names: its option stands alone in a terminal."""
    dangling = re.compile(r"(gateway only: )?(that|of|for|which) |.* holds it$")
    assert [it.name for it in declared_settings() if dangling.match(it.help)] == []
