"""The report as one HTML file that needs nothing else: inline SVG, no foreign scripts or fonts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcx.eval.exact import METHOD
from lcx.eval.lengths import STABLE_WITHIN
from lcx.labels import cut, one_line
from lcx.study import answers, markup, sections, tables
from lcx.study.arms import Row, baseline, curves, train_lengths
from lcx.study.cells import Cell
from lcx.study.distinct import final
from lcx.study.figures import Figure
from lcx.study.gaps import longest, rises
from lcx.study.names import WIDTH

NAMED = 4  # arms that the summary lists
STAR = "* the train length. Any number leads to its row, with its method."
TERMS = (
    ("bits per byte", "how many bits the model needs per byte of text: lower is better. A model "
     "that knows nothing needs 8"),
    ("context", "how many tokens of the same text the model sees before the block that is scored. "
     "The same blocks are scored at every context, so that only the context changes"),
    ("train length", "the window that the model was trained on. What comes beyond it is the test"),
    ("rise", "bits per byte at the longest context minus those at the longest context that still "
     "lies, with its block, inside the train length. About 0: the model holds up; above: it breaks "
     "down; below: it makes use of the longer context"),
    ("G", "the same difference against a context of exactly the train length, paired by token"),
    ("arm", "what is compared: a positional scheme on a sequence mixer; its runs differ by seed"),
)


def page(title: str, rows: Sequence[Row], figures: Sequence[Figure], *, stamp: str,
         commands: Sequence[str] = (), warnings: Sequence[str] = (),
         members: Sequence[Mapping[str, Any]] = (),
         configs: Mapping[str, Mapping[str, Any]] | None = None,
         files: Sequence[str] = ()) -> str:
    """The HTML text. configs: the resolved config of each run, by run id; files: beside the page.

    Tables show each run's last checkpoint.
    """
    rows = final(rows)
    drawn = {figure.name: markup.figure(figure) for figure in figures}
    take = lambda *names: [drawn.pop(name) for name in names if name in drawn]
    parts = [f"<h1>{markup.escape(title)}: train short, test long</h1>",
             f"<p>{markup.escape(summary(rows))}</p>", ""]
    parts += [f'<p class="warn">{markup.escape(text)}</p>' for text in warnings]
    if curves(rows, "bpb") or not curves(rows, "accuracy", METHOD):
        parts += [*take("bpb"), markup.details("What the words mean", markup.facts(TERMS))]
        parts += [_section("Ranked by what longer context costs", "ranked"), *take("ranked")]
        parts += [markup.table(tables.ranked(rows), names=2), markup.small(_ranked_note(rows))]
        parts += [_section("Bits per byte by context length", "lengths"),
                  markup.table(tables.by_length(rows, gaps=False)), markup.small(STAR),
                  markup.details("With 95% intervals",
                                 markup.table(tables.by_length(rows, True, gaps=False)))]
    parts += _answers(rows, take("accuracy"))
    if (perplexity := tables.by_length(rows, True, metric="perplexity", gaps=False))[1]:
        parts.append(markup.details("Perplexity per token", markup.table(perplexity)))
    parts += [_section("More figures", "figures"),
              '<div class="figures">' + "\n".join(drawn.values()) + "</div>"] if drawn else []
    if (reached := tables.lengths_reached(rows))[1]:
        parts += [_section("How far each model reaches", "reach"), markup.table(reached),
                  markup.small("Stable: the longest context up to which the upper limit of G stays "
                               f"within {STABLE_WITHIN}. Useful: the longest context that is still "
                               "significantly better than half of it. Several values: one per "
                               "seed.")]
    parts += [_section("What each arm was given", "fairness"), markup.table(tables.fairness(rows)),
              markup.small("A comparison is fair where these agree. FLOPs per token: matrix "
                           "products of the forward pass at the train length. State size: numbers "
                           "a stream remembers after as many tokens.")]
    parts += [_section("Each arm: method, config and every row", "arms")]
    parts += sections.of_arms(rows, configs or {})
    parts += [_section("How this was made", "made"),
              "<pre>" + markup.escape("\n".join(commands)) + "</pre>", markup.small(stamp)]
    if members:
        parts.append(markup.details(f"Runs ({len(members)})", markup.table(_members(members))))
    parts[2] = _contents("".join(parts), files)
    return markup.document(f"{title}: lcx report", parts)


def _answers(rows: Sequence[Row], figure: Sequence[str]) -> list[str]:
    """The sections of synthetic tasks, where one was measured."""
    parts = []
    for metric, words in answers.WORDS.items():
        if not (table := answers.by_length(rows, metric))[1]:
            return []
        parts += [_section(f"{words}, by length of row", metric), *figure, markup.table(table),
                  markup.small(STAR), markup.details("With 95% intervals", markup.table(
                      answers.by_length(rows, metric, intervals=True)))]
        figure = ()
    return parts


def summary(rows: Sequence[Row]) -> str:
    """The answer in a few sentences, from the rows alone."""
    context = longest(rows)
    if not context and (told := answers.summary(rows)):
        return told
    gaps = [gap for gap in rises(rows) if gap.estimate is not None]
    if not gaps or context <= min(train_lengths(rows), default=0):
        return "No length beyond the train length was measured yet."
    bpb = {arm: points[-1].estimate for arm, points in curves(rows, "bpb").items()}
    limit = lambda gap: gap.estimate.value if gap.estimate.high is None else gap.estimate.high
    told = [f"{gap.arm.label()} ({bpb[gap.arm].value:.2f} bits per byte)"
            for gap in gaps if limit(gap) <= STABLE_WITHIN]
    trained = ", ".join(str(length) for length in train_lengths(rows))
    text = f"Trained at length {trained} and tested with up to {context} tokens of context. "
    if told:
        more = f" and {len(told) - NAMED} more" if told[NAMED:] else ""
        text += (f"At {context}, {len(told)} of {len(gaps)} arms hold up, their rise at most "
                 f"{STABLE_WITHIN} with 95% confidence: {', '.join(told[:NAMED])}{more}. ")
    else:
        text += f"At {context}, no arm is sure to hold up (rise at most {STABLE_WITHIN}). "
    worst = gaps[-1]
    if limit(worst) > STABLE_WITHIN:
        text += (f"{worst.arm.label()} rises most: by {worst.estimate.value:.2f}, to "
                 f"{bpb[worst.arm].value:.2f}. ")
    if (row := baseline(rows)) is not None:
        text += f"A unigram model, which knows no context, scores {row['value']:.2f}."
    return text.strip()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _contents(body: str, files: Sequence[str]) -> str:
    places = (("ranked", "ranking"), ("lengths", "by length"), ("accuracy", "accuracy"),
              ("figures", "more figures"), ("fairness", "fairness"),
              ("arms", "method and config"), ("made", "how it was made"))
    links = [f'<a href="#{place}">{name}</a>' for place, name in places
             if f'id="{place}"' in body]
    links += [f'<a href="{markup.escape(file)}">{markup.escape(file)}</a>' for file in files]
    return f"<nav>{' '.join(links)}</nav>"


def _section(title: str, place: str) -> str:
    return f'<h2 id="{place}">{markup.escape(title)}</h2>'


def _ranked_note(rows: Sequence[Row]) -> str:
    """What the ranked table's columns are, and how many documents would tell arms apart."""
    told = ("Verdict: tie where the rise cannot be told from 0 at the 5% level, after Holm's "
            "correction over the table. bpb within L: at the longest context whose block is still "
            "inside the train length. Short cost: that minus the best arm's.")
    found = [(row["extra"]["documents_needed"], row["documents"]) for row in rows
             if row["metric"] == "bpb_gap" and row["length"] == longest(rows)
             and (row["extra"] or {}).get("documents_needed")]
    if found:
        needed, had = max(found)
        told += (f" To tell 0.01 bits per byte of G apart, the widest interval here would take "
                 f"about {needed:,} documents; it had {had}.")
    return told


def _members(members: Sequence[Mapping[str, Any]]) -> tables.Table:
    """What is long is cut in its cell, and whole on hover."""
    header = ["run", "position", "mixer", "seed", "label", "state", "error"]
    return header, [[Cell(cut(one_line(member.get(key, "")), WIDTH if key != "error" else 200),
                          title=str(member.get(key, ""))) for key in header]
                    for member in members]
