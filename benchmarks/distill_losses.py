"""From which loss does a small student learn most?

    python -m benchmarks.distill_losses --workers 3 trainer=gpu    # a tenth of the zoo's T5
    python -m benchmarks.distill_losses --experiment distill_t5_quarter
    python -m benchmarks.distill_losses --only kl jsd pipeline.distill.steps=12000
    python -m benchmarks.distill_losses --toy                      # one seed, two steps: does it run?

Every seed trains the student of ``--experiment`` with each divergence of ``conf/loss`` in the place of ``--loss``, at
the temperatures that are set there; and with hidden states through a learned projection, their cosines, and MiniLM's
relations beside the divergence of the experiment: the same student from the same start on the same batches. The
validation split chooses the best divergence and the best addition; the test split, which chooses nothing, says how far
they are from the forward divergence. ``--only`` takes some of them by name. Further arguments are overrides of all
runs. Finished stages are kept. Prints Markdown, and writes ``RUNS/NAME.json``.
"""

from benchmarks.temperature import Arm, best, parsed, parser, report, results

DIVERGENCE, ADDITION = "divergence", "addition"
BETAS = (0.1, 0.9)  # beside the default 0.5, as in Agarwal et al. 2024
DIVERGENCES = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation")
HIDDEN_WEIGHT = 3.0  # as in experiment=distill_t5


def arms(stage: str, loss: str) -> list[Arm]:
    """Divergences in the place of ``loss``, the forward one first, and what may be added to it."""
    losses = f"pipeline.{stage}.losses"
    chosen = {name: (f"loss@{losses}.{loss}={name}",) for name in DIVERGENCES}
    chosen |= {f"jsd, beta {beta}": (f"loss@{losses}.{loss}=jsd", f"{losses}.{loss}.beta={beta}") for beta in BETAS}
    hidden = (f"+loss@{losses}.hidden=hidden", f"{losses}.hidden.projection=true")
    additions = {
        "kl + hidden": (*hidden, f"{losses}.hidden.weight={HIDDEN_WEIGHT}"),
        "kl + cosine of hidden": (*hidden, f"{losses}.hidden.distance=cosine"),
        "kl + relations": (f"+loss@{losses}.relations=relations",),
    }
    return [
        *(Arm(name, DIVERGENCE, overrides) for name, overrides in chosen.items()),
        *(Arm(name, ADDITION, overrides) for name, overrides in additions.items()),
    ]


def main() -> None:
    made = parser(__doc__, experiment="distill_t5_tenth", name="distill_losses", seeds=3)
    made.add_argument("--only", nargs="+", metavar="NAME", help="of the table's rows, beside kl")
    arguments = parsed(made)
    every = arms(arguments.stage, arguments.loss)
    of = [arm for arm in every if arguments.only is None or arm.name in {every[0].name, *arguments.only}]
    if unknown := {*(arguments.only or ())} - {arm.name for arm in every}:
        made.error(
            f"--only {', '.join(sorted(unknown))}: no such row; there are {', '.join(arm.name for arm in every)}"
        )
    found = results(of, arguments)
    kinds = dict.fromkeys(arm.kind for arm in of)
    report(found, of[0], [best(found, kind) for kind in kinds], arguments)


if __name__ == "__main__":
    main()
