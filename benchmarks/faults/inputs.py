"""Cases of wrong input: overrides of train, evaluate and a sweep, arguments of report, select and clean."""

from collections.abc import Iterator

from benchmarks.faults.case import Case
from benchmarks.faults.damage import ESCAPE, SCRIPT
from benchmarks.faults.outcome import nothing, printed
from benchmarks.faults.world import CLEAN, DATA, MODEL, PRUNE, REPORT, SELECT, Command, evaluate, train

NUMBERS = ("-1", "x", "null", "1e400", "nan", "[]", "{}", "''", "1e30")
OVERRIDES: dict[str, tuple[str, ...]] = {  # of a train command, key -> values that cannot be, or that can just be
    "pipeline.prune.sparsity": (*NUMBERS, "1.2", "1", "true", "0.5,0.6"),
    "pipeline.prune.steps": (*NUMBERS, "1.5", "99999999999999999999"),
    "pipeline.prune.batch_size": (*NUMBERS, "0", "1.5"),
    "pipeline.prune.accumulate": ("-1", "0", "x", "null", "1.5"),
    "pipeline.prune.every": ("-1", "0", "x", "null", "1.5"),
    "pipeline.prune.ramp": ("-1", "2", "x", "null", "nan"),
    "pipeline.prune.clip_norm": ("-1", "x", "nan"),
    "pipeline.prune.optimizer.lr": ("-1", "x", "null", "nan", "1e400", "1e300", "[]"),
    "pipeline.prune.include": ("x", "5", "[]", "[nothing]", "null", "[5]"),
    "pipeline.prune.min_coverage": ("-1", "2", "x", "1"),
    "pipeline.prune.seed": ("-1", "x", "1e400", "4294967296", "null"),
    "pipeline.prune.importance": ("x", "null", "[]", "{}"),
    "pipeline.prune._target_": ("os.system", "x", "", "null", "5", "slimexp.technique.prune.Missing"),
    "+pipeline.prune.nonsense": ("1",),
    "pipeline.prune.stepz": ("4",),
    "+pipeline.other": ("5", "{}", "null"),
    "+pipeline.dense": ("{}",),
    "pipeline": ("nothing", "null", "5", "''", "[prune]", "../prune"),
    "model": ("nothing", "null", "5", "../../victim", "[]"),
    "model.path": ("nowhere", "''", "null", "5", "table.csv", "runs", "/dev/zero", "../victim", "zoo:nothing",
    "zoo:../x",
                   "a/b/c", "hf://x", "'a b'", "x/../y", "/", ".", "~", "'\\n'"),
    "model.max_length": (*NUMBERS, "1", "0", "65", "16.5"),
    "model@baseline": ("pretrained", "nothing"),
    "data": ("nothing", "null", "hub"),
    "data.path": ("nowhere.csv", "''", "null", "5", ".", "/", "/dev/zero", "/dev/null", "model",
    "../victim/thesis.txt"),
    "data.task": ("x", "null", "5", "seq2seq", "classification"),
    "data.columns.text": ("nothing", "null", "5", "''"),
    "data.passage": ("-1", "0", "x", "1e400"),
    "data.splits.held_out": ("-1", "1", "2", "x", "nan", "0"),
    "data.splits.max_train": ("-1", "0", "x"),
    "data.splits.seed": ("-1", "x"),
    "measure": ("nothing", "[nothing]", "5", "null", "[task,task]", "''"),
    "measure.task.split": ("nothing", "null", "5"),
    "measure.task.limit": ("-1", "0", "x", "1.5"),
    "trainer": ("nothing", "null", "gpu"),
    "trainer.precision": ("x", "-1", "16", "null"),
    "trainer.accelerator": ("x", "tpu", "null", "gpu"),
    "trainer.devices": ("0", "-1", "2", "x", "null"),
    "+trainer.max_time": ("x", "'00:00:00:00'"),
    "+trainer.nonsense": ("1",),
    "logger": ("nothing", "5"),
    "callback": ("nothing", "5"),
    "name": ("''", "null", "../victim", "../../victim", "'a/b'", ".", "..", "5", f"'{'x' * 300}'", f"'{ESCAPE}'",
             f"'{SCRIPT}'", "'$$'"),
    "runs": ("''", "null", "table.csv", "/proc/nothing", "/dev/null", "table.csv/x", f"'{'x' * 300}'",
    "model/config.json"),
    "seed": ("-1", "x", "null", "1.5", "4294967296", "1e400"),
    "save_dtype": ("int8", "x", "null", "system", "float64"),
    "resume": ("maybe", "null", "5"),
    "trainer.compile": ("maybe", "null"),
    "trainer.attention": ("[]", "5", "[fast]"),
    "trainer.pad_to": ("0", "x", "null"),
    "checkpoint.every_steps": ("-1", "0", "x", "null"),
    "checkpoint.every_seconds": ("-1", "x", "nan"),
    "checkpoint.share": ("0", "1.5", "x", "nan"),
    "checkpoint": ("5", "null"),
    "nonsense": ("1",),
    "+nonsense": ("1",),
    "~pipeline": ("",),
    "~nonsense": ("",),
    "+experiment": ("nothing", "../x"),
    "hydra.run.dir": ("/dev/null", "''"),
}  # fmt: skip
BARE = (
    "",
    "=",
    "=5",
    "a",
    "a=b=c",
    "a[=1",
    "a={",
    "a='",
    "a=${b}",
    "name=${name}",
    "a=${oc.env:HOME}",
    "--nothing",
    "-x",
    "é=1",
    "..=1",
    "a..b=1",
    "+=1",
    "++=",
    "~",
    "@=1",
    "pipeline@=prune",
    "--cfg",
    "-m",
)
EVALUATION: dict[str, tuple[str, ...]] = {
    "model": ("scratch", "nothing", "null", "cut_out"),
    "model.path": ("nowhere", "''", "table.csv", "runs", "../victim", "half"),
    "model.max_length": ("-1", "1", "x", "1e9"),
    "device": ("gpu", "cuda", "cuda:9", "x", "''", "meta", "null", "mps"),
    "measure": ("[]", "[nothing]", "null", "[lm_eval]", "[sensitivity]", "[flops,memory]"),
    "measure.task.limit": ("-1", "0", "x"),
    "model@baseline": ("pretrained", "nothing", "scratch"),
    "baseline.path": ("x",),
    "seed": ("-1", "x"),
    "name": ("null", "''", f"'{ESCAPE}'"),
    "runs": ("table.csv", "/dev/null/x", "''"),
    "pipeline": ("prune",),
    "nonsense": ("1",),
}
SWEEPER: dict[str, tuple[str, ...]] = {
    "hydra.sweeper.workers": ("0", "-1", "x", "null", "1.5"),
    "hydra.sweeper.threads": ("0", "x"),
    "hydra.sweeper.trials": ("0", "-1", "x", "1.5"),
    "hydra.sweeper.seeds": ("[1,1]", "5", "[x]", "[-1]"),
    "hydra.sweeper.objectives": ("{}", "[]", "{x: min}", "{disk_mb: up}", "5"),
    "hydra.sweeper.limits": ("{disk_mb: x}", "[]", "{x: 1}", "5"),
    "hydra.sweeper.storage": ("x", "postgresql://", "sqlite:////dev/null/x", "5", "http://x", "sqlite://"),
    "hydra.sweeper.fail_fast": ("maybe", "5"),
    "hydra.sweeper.max_failures": ("-1", "x"),
    "hydra.sweeper.promote.most": ("-1", "x"),
    "hydra.sweeper.promote.overrides": ("5", "[a]", "['x=']"),
    "hydra.sweeper.promote": ("5", "{}"),
    "+hydra.sweeper.nonsense": ("1",),
    "hydra/sweeper/sampler": ("nothing", "tpe"),
    "hydra/sweeper/pool": ("nothing", "ray"),
    "pipeline.prune.sparsity": ("0.5", "0.5,0.5", "interval(0,1)", "interval(1,0)", "range(5,1)", "0.5,x", "glob(*)",
                                "choice()", "-1,-2", "tag(log,interval(0,1))", "0.5,1.5", "interval(nan,1)"),
    "name": ("../victim", "''"),
    "seed": ("1,2",),
}  # fmt: skip
ARGUMENTS: dict[Command, tuple[tuple[str, ...], ...]] = {
    REPORT: (
        ("--x", "nothing"), ("--y", "nothing"), ("--z", "nothing"), ("--x", ""), ("--x", "disk_mb", "--y", "disk_mb"),
        ("--z", "disk_mb"), ("--reference", "nowhere.csv"), ("--reference", "model"), ("--reference", "table.jsonl"),
        ("--reference", "/dev/zero"), ("--out", "table.csv"), ("--out", "/proc/x"), ("--out", "table.csv/x"),
        ("--port", "5"),
        ("--watch", "--port", "99999999"), ("--watch", "--out", "x"), ("--watch", "--wandb"), ("--port", "x"),
        ("--nonsense",),
        ("more",), ("--x",), ("--out", ""), ("--x", ESCAPE), ("--x", r"$\frac{$"), ("--watch", "--port", "-1"),
    ),
    SELECT: (
        ("max_nothing=1",), ("max_disk_mb",), ("max_disk_mb=",), ("max_disk_mb=x",), ("max_disk_mb=nan",),
        ("disk_mb=1",),
        ("max_disk_mb=1", "max_disk_mb=2"), ("=",), ("max_=1",), ("--nonsense",), ("max_disk_mb=-1",), (ESCAPE,),
        ("max_disk_mb=1e400",), ("max_bits_per_byte=0",),
    ),
    CLEAN: (
        ("--days", "-1"), ("--days", "x"), ("--days", "nan"), ("--x", "nothing"), ("--y", "nothing"), ("--z", ""),
        ("--nonsense",), ("more",), ("--days", "1e400"),
    ),
}  # fmt: skip
FOLDERS = (  # not ".", which names the whole home, and gives all in it to the program
    "nowhere",
    "table.csv",
    "model",
    "/dev/zero",
    "/dev/null",
    "",
    "../victim",
    "runs/records.jsonl",
    "runs/mine",
)
PROGRAMS: dict[str, tuple[str, ...]] = {
    "slimexp.report": (),
    "slimexp.select": ("max_disk_mb=1",),
    "slimexp.clean": ("--unfinished", "--dominated", "--yes"),
}
SWEPT = ("-m", *MODEL, *DATA, "logger=none", "trainer=fast", *PRUNE, "pipeline.prune.steps=1", "name=new", "runs=new",
         "hydra/sweeper=pareto", "hydra.sweeper.workers=1")  # fmt: skip
TWO = "pipeline.prune.sparsity=0.5,0.9"


def _override(key: str, value: str) -> str:
    return key if key.startswith("~") else f"{key}={value}"


def cases() -> Iterator[Case]:
    """All; an input that can be taken may give other figures."""
    for key, values in OVERRIDES.items():
        for value in values:
            given = _override(key, value)
            yield Case("train", given[:60], _unread(train("new", *PRUNE, given)), differs=True)
    for given in BARE:
        yield Case("train", f"bare {given!r}", _unread(train("new", *PRUNE, given)), differs=True)
    for key, values in EVALUATION.items():
        for value in values:
            given = _override(key, value)
            yield Case("evaluate", given[:60], _unread(evaluate("model", given)), differs=True)
    for key, values in SWEEPER.items():
        for value in values:
            swept = () if key == "pipeline.prune.sparsity" else (TWO,)
            command = Command("slimexp.train", (*SWEPT, *swept, f"{key}={value}"), nothing, "new")
            yield Case("multirun", f"{key}={value}", command, differs=True)
    for command, lines in ARGUMENTS.items():
        for arguments in lines:
            kind = command.module.rpartition(".")[2]
            yield Case(kind, " ".join(arguments), _unread(command.more(*arguments)), differs=True)
    for module, further in PROGRAMS.items():
        for folder in FOLDERS:
            name = f"folder {folder!r}"
            owned = folder.partition("/")[0] or "none"
            command = Command(module, (folder, *further), printed, owned)
            yield Case(module.rpartition(".")[2], name, command, differs=True)


def _unread(command: Command) -> Command:
    """The same, with nothing to compare: what a wrong input should give is no figures."""
    return Command(command.module, command.arguments, nothing, command.owned)
