"""Does slimexp stand damaged and hostile files, wrong input, and a kill at any moment?

    python -m benchmarks.faults                                  # files and inputs, then 1000 kills: about an hour
    python -m benchmarks.faults --kind manifest,records --kills 0
    python -m benchmarks.faults --kind none --kills 0 --minutes-fuzz 10

One small world (models, text, finished and half-finished runs, a sweep) is made once. A case copies it, damages one
file or gives one wrong input, runs one command, and is judged by what is left: the figures, weights and files of the
same command in an undamaged copy, and what the command said. Commands run in forked children of one warm process, so
that a case takes its work's time and not that of the imports.

Reported: cases by kind and outcome. Right are ``ok`` (the undamaged figures), ``refused`` (status 1 or 2 and an error
in a line), ``redone`` (said, and the undamaged figures) and ``skipped`` (said, and the rest as undamaged). Exit status
1 where any other outcome occurred: ``code run``, ``foreign touched``, ``escape`` (control characters on the terminal,
markup on the page), ``traceback``, ``silent`` (other figures and no word), ``mute`` (failed and no error said),
``endless``, ``crash``, ``huge``; or where a killed command that was repeated left another result than the straight run.
"""
