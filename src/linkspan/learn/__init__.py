"""Lessons: a reader builds networks by hand in a sandbox, and linkspan says what the kernel has of it.

A lesson is data
    One folder below ``lessons/``: `lesson.toml` (what is there at the beginning, what must be true at the end), and
    a text for each language (`en.md`, `zh.md`). The engine knows no lesson, and a lesson's only code are shell
    commands. docs/lessons.md describes the format, `lesson.py` and `texts.py` read it, and `learn check` tests one.

What counts is the kernel's state
    A check is a command and what its output must match. The watcher (`watcher.py`) takes a fingerprint of the sandbox
    twice a second: links, addresses, routes, rules of all namespaces. Only if it changed are the checks run, because
    a probe is a real packet, which moves the counters that the reader looks at. So any command that reaches the state
    counts, whoever typed it and in whichever window. What the reader typed is not looked at, nor are aliases and
    comments, which only say something (`given_text.py`).

Three judgements
    `checks` are the steps of the task. `keep` is what must stay, so that a shortcut does not count. The `probe` is the
    command that fails at the beginning and works at the end. A lesson is passed if all three are as they should be, and
    the probe's packets arrive in the namespace that they should reach (`reaches`): the kernel counts them there. A
    name of a namespace must mean what it meant at the beginning, and no two the same (`named_namespaces.py`).
    `wrong` and `also` recognise states: a likely mistake, and another way that passes but costs something. Each has
    its answer in the texts.

The sandbox is a tree of namespaces with one root
    `sandbox.py` starts one process in new mount, network, IPC, UTS and PID namespaces, and in a user namespace without
    root.
    It has a /run of its own, so `ip netns` works there and nobody else sees the names. It is the init of the PID
    namespace: when it ends, the kernel ends every process of the sandbox, and with the last of them go the mounts and
    the network namespaces. Nothing has to be removed one by one. The init reads a pipe from the process that made the
    sandbox, so it ends with it, even if that one is killed. Without a terminal the maker leaves it as soon as the
    lesson has begun, and `learn reset` ends it. The machine's own network is never touched: the sandbox's "host" is a
    network namespace, too.

One beginning after the other
    A lesson `begins` where another one ended: the sandbox is made by the first solution of that one. So there is no
    second description of the state between two lessons, and a lesson that does not lead to the next one fails its test.

A window of its own, or the reader's
    `terminal.py` runs the reader's shell behind a pseudo-terminal and prints what the watcher found above the prompt.
    With tmux, the lesson and what is achieved are in a pane of their own (`learn watch`).

An exam proves that lines solve a task
    `exam.py` has the result file. The shell of an exam writes down each line before it runs, and `learn exam verify`
    types them again in a new sandbox (`replay.py`), in the same shells, with ^C for what does not end. Those lines are
    another person's: `closed_files.py` puts a user namespace around that sandbox. There all files are read-only, and
    homes, sockets, terminals and the machine's processes are hidden. `closed_calls.py` refuses system calls that reach
    beyond namespaces: keys, and sockets of the machine's hypervisor and firmware. Lines may also replace a program, or
    change what looks at them. So the checks of a replay run beside the sandbox (`beside.py`), in the namespace around
    it.

An explanation is linkspan's own trace
    `explanation.py` walks the lesson's packet as `linkspan trace` does, with the same code. Only what it starts from is
    the reader's: `reader_network.py` takes every namespace for a container of the host to which its link leads, and a
    lesson's ``hosts`` for hosts. `reader_kernel.py` and `reader_walk.py` know what linkspan does not make itself: any
    tunnel device, policies of IPsec, and the flows of a switch.

A fault is found by whoever looks
    A lesson with a ``fault`` begins broken. Its reason is told at the end, and linkspan's trace answers only after the
    reader has changed a setting. `learn check` asks the trace at the beginning: it must find the fault.

Two languages
    A lesson's texts have the same parts and the same commands in both. The interface's own strings are gettext's:
    English in the code, others in ``locale/*.po``, which `language.py` reads. linkspan's trace speaks English in
    finished sentences, which `core/sentences.py` knows by those in its ``locale/*.po``. Tests say what is missing or
    stale.

What is kept
    `progress.py` writes one file in the user's state folder: the language, the lesson that is open, and for each lesson
    whether it is passed, with tries, hints and seconds. Nothing of it leaves the machine.
"""

INSIDE = "LINKSPAN_LEARN_INSIDE"
"""Environment variable of the commands that a reader types in a sandbox."""
