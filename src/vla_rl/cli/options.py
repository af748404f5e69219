"""Words of a command line to a configuration dataclass, with errors of one line.

The only module that knows tyro, which makes the options and their help from the dataclasses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import operator
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from vla_rl.cli.fields import Option, RefusedError, in_its_words, negative, options_of, registry
from vla_rl.cli.old_values import old_switches, old_values, with_new_values, without_switches
from vla_rl.config import EnvConfig, LoraConfig, UserError, nearest
from vla_rl.config.effects import Effect, without_effect
from vla_rl.config.errors import ConfigError, in_lines
from vla_rl.config.old_names import OLD_FIELDS
from vla_rl.config.serialize import to_json

C = TypeVar("C")

PRINT_CONFIG = "--print-config"


class ParseCommand(Protocol):
    """`parse` for a command by its name, with the help that belongs to it."""

    def __call__(
        self,
        cls: type[C],
        words: list[str],
        command: str,
        default: C | None = None,
        notes: str = "",
    ) -> C: ...


def _of_today(
    words: Sequence[str], cls: type[Any], default: object, flat: bool, command: str
) -> Sequence[str]:
    """Options whose values or switches were others before, as they are given now."""
    words = with_new_values(words, dict(old_values(cls, default, "", flat)), command)
    for switches in old_switches(cls, default, "", flat):
        words = without_switches(words, switches, command)
    return words


def parse(
    cls: type[C],
    words: Sequence[str],
    *,
    command: str,
    description: str,
    default: C | None = None,
    usage: str = "",
    flat: bool = False,
) -> C:
    """Build `cls` from the options in `words`. UserError, one line, for whatever does not fit.

    Fields without a default are positional. `flat` leaves out the names of nested dataclasses, `usage`
    follows the command in the help. `--help` prints that, with the defaults, and ends the program with code 0; so does
    `--print-config` with the configuration. An option without effect is a UserError, or a line on standard error.
    """
    import tyro

    printed, words = PRINT_CONFIG in words, [word for word in words if word != PRINT_CONFIG]
    options = {option.name: option for option in options_of(cls, default, flat)}
    old = old_options(cls, default, flat)
    words = _of_today(_with_new_names(words, old, command), cls, default, flat, command)
    for word in words:
        option = normal(word)
        if re.match(r"-[-a-z]", option) and option not in (*options, "--help", "-h"):
            # the opposite of a switch in a group: --ppo.no-normalize-advantages, not --no-ppo.normalize-advantages
            meant = negative(option.replace("--no-", "--", 1)) if option[:5] == "--no-" else option
            hint = _nearest(meant, [*options, PRINT_CONFIG], old)
            raise UserError(f"{command}: there is no option {option}.{hint}")
    conf = tyro.conf
    markers: list[Any] = [conf.AvoidSubcommands, conf.SuppressFixed, conf.DisallowNone]
    markers += [conf.PositionalRequiredArgs, conf.PositionalMetavarFromFieldName]
    markers += [conf.OmitArgPrefixes] if flat else []
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with _plain_output(command):
            value, extra = tyro.cli(
                cls,
                args=list(words),
                prog=f"vla-rl {command}{usage}",
                description=description,
                return_unknown_args=True,
                config=markers,
                registry=registry(),
                **keywords,
            )
    except RefusedError as refused:
        raise UserError(f"{command}: {in_its_words(refused.reason, options.values())}") from None
    if extra:
        raise UserError(f"{command}: {_unexpected(extra[0], list(words), options)}")
    _require_effect(value, [options[w] for w in map(normal, words) if w in options], command)
    if printed:
        _require_tasks(value)
        raise _printed(value)
    return value


def _printed(config: Any) -> SystemExit:
    say(json.dumps(to_json(config), indent=2))
    return SystemExit(0)


def _require_tasks(config: Any) -> None:
    """ConfigError where the suite has no such tasks, as far as it can be told without the simulator."""
    if isinstance(getattr(config, "env", None), EnvConfig):
        from vla_rl.envs.registry import task_names

        try:
            task_names(config.env.suite)
        except ConfigError:
            raise
        except UserError:
            pass  # not installed here: the settings may be for another machine


def _require_effect(config: Any, given: Sequence[Option], command: str) -> None:
    """Raise UserError for options that have no effect in `config`; say so where it makes no difference."""
    defaults = {option.attributes: option.default for option in given}

    def changed(field: str) -> bool:
        return operator.attrgetter(field)(config) != defaults[field]

    named = {option.attributes: option.name for option in given}
    found = without_effect(config, named, changed, _of_simulator(config))
    errors = [finding.message for finding in found if finding.severity == "error"]
    if errors:
        raise UserError(f"{command}: {'; '.join(errors)}")
    for finding in found:
        print(f"vla-rl {command}: {finding.message}", file=sys.stderr)


def _of_simulator(config: Any) -> tuple[Effect, ...]:
    """What the simulator that is configured makes nothing of."""
    if not isinstance(getattr(config, "env", None), EnvConfig):
        return ()
    from vla_rl.envs.registry import benchmark

    played = benchmark(config.env.suite)
    fields = tuple(f"env.{name}" for name in played.ignores)
    return (Effect(fields, lambda _: False, f"{played.title} makes nothing of it"),)


def _nearest(meant: str, options: Sequence[str], old: dict[str, str]) -> str:
    """The nearest option by its present name, also where the word is nearer to a name of before."""
    hint = nearest(meant, [*options, *old])
    for name, new in old.items():
        hint = hint.replace(f"{name!r}", f"{new!r}")
    return hint


def _unexpected(word: str, words: list[str], options: dict[str, Option]) -> str:
    before = normal(words[words.index(word) - 1]) if words.index(word) else ""
    if before in options and options[before].is_switch:
        other = before.replace("no-", "", 1) if "no-" in before else negative(before)
        return f"{before} is a switch and takes no value, got {word!r}; its opposite is {other}"
    return f"there is nothing for {word!r} to set; names come before the options"


def old_options(cls: Any, default: Any = None, flat: bool = False) -> dict[str, str]:
    """Options of before, each with the one that stands for it today."""
    return dict(_old_options(cls, default, "", flat))


def _old_options(cls: Any, default: Any, prefix: str, flat: bool) -> Iterator[tuple[str, str]]:
    for old, new in OLD_FIELDS.get(cls.__name__, {}).items():
        yield f"--{prefix}{old}".replace("_", "-"), f"--{prefix}{new}".replace("_", "-")
    hints = typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        value = getattr(default, entry.name, None)
        inner = type(value) if dataclasses.is_dataclass(value) else hints[entry.name]
        if dataclasses.is_dataclass(inner):
            name = f"{prefix}{entry.name.replace('_', '-')}"
            yield from _old_options(inner, value, "" if flat else f"{name}.", flat)


def _with_new_names(words: Sequence[str], old: dict[str, str], command: str) -> list[str]:
    """`words` with options of before replaced, and one line about each."""
    replaced = list(words)
    for at, word in enumerate(words):
        new = old.get(normal(word))
        if new is not None:
            print(f"vla-rl {command}: {normal(word)} is called {new} now", file=sys.stderr)
            replaced[at] = new + "".join(word.partition("=")[1:])
    return replaced


def normal(word: str) -> str:
    """The option a word names, as the help spells it."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("-") else word


class _Captured(io.StringIO):
    """Standard output held back; claims the same encoding and terminal, on which the layout depends."""

    encoding = property(lambda _: getattr(sys.__stdout__, "encoding", None))  # type: ignore[assignment]

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


@contextlib.contextmanager
def _plain_output(command: str) -> Iterator[None]:
    """The library draws a box and exits with 2: take the message out of the box. Its help passes through."""
    text, box = _Captured(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(box):
            yield
    except SystemExit as leaving:
        if leaving.code in (0, None):
            say(text.getvalue().rstrip())
            raise
        raise UserError(f"{command}: {_rephrase(_message_in(box.getvalue()))}") from None


def _message_in(box: str) -> str:
    """The message of the first box, unwrapped: its first part, past the title."""
    parts: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        content = line.strip(" │|")
        if re.fullmatch(r"[╭╰].*|[─-]{2,}", content):
            parts.append([])
        else:
            parts[-1].append(content)
    messages = [" ".join(" ".join(part).split()) for part in parts if any(part)]
    if not messages:
        return "these options cannot be understood"
    # a box of line-drawing characters has the title in its frame, a plain one above the first rule
    return messages[0] if "╭" in box else messages[min(1, len(messages) - 1)]


_REPHRASINGS: tuple[tuple[str, str], ...] = (
    (r"Error parsing (--\S+): could not convert string to float: (.*)", r"\1: expected a number, got \2"),
    (r"Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)", r"\1: expected a whole number, got \2"),
    (r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]", r"\1: no list of its kind: \2"),
    (r"Error parsing (--\S+): (.*)", r"\1: \2"),
    (r"Error parsing [\w.-]+: (.*)", r"\1"),
    (r"Missing value for argument '(--\S+)'.*", r"\1 needs a value"),
    (r"Missing from \S+ \S+: ([A-Z-]+) (.*) \(required\)", r"\1 is missing: \2"),
)  # fmt: skip


def _rephrase(message: str) -> str:
    choice = re.match(
        r"invalid choice '(.*?)' for argument '(.*?)'. Expected one of \((.*?)\)", message
    )
    if choice:
        got, option, listed = choice.groups()
        known = re.findall(r"'(.*?)'", listed)
        return f"{option}: expected one of {', '.join(known)}, got {got!r}.{nearest(got, known)}"
    for pattern, replacement in _REPHRASINGS:
        if re.fullmatch(pattern, message):
            return re.sub(pattern, replacement, message)
    return message


def value_of(option: str, words: Sequence[str]) -> str | None:
    """What `words` set `option` to, before anything is parsed; None where they do not."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if normal(word) == option:
            return word.partition("=")[2] if "=" in word else following
    return None


def with_lora(base: C, words: list[str]) -> tuple[C, list[str]]:
    """Turn adapters on in `base` (a config with a policy) where any option speaks of them."""
    if not any(normal(word).startswith("--policy.lora") for word in words):
        return base, words
    policy = typing.cast(Any, base).policy
    lora = policy.lora or LoraConfig()
    changed = replace(typing.cast(Any, base), policy=replace(policy, lora=lora))
    return changed, [word for word in words if word != "--policy.lora"]


def say(text: str) -> None:
    """To standard output; a reader that has had enough (`| head`) is no error."""
    try:
        print(in_lines(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
