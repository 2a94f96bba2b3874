"""Makes the virtual environment and installs Celadon into it. Standard library only; repeats do no harm.

    python3 bootstrap.py [FOLDER [EXTRA]]

FOLDER is .venv if left out; EXTRA is `cpu` (the service with OpenVINO), `gpu` (with torch) or `dev` (both, tests and linters).
`make` calls this; without make, `python3 bootstrap.py && .venv/bin/celadon up` does the same.
"""

import collections
import importlib.util
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
OLDEST = (3, 11)
ORACLES = ["k-diffusion"]  # for tests; installed alone, since what it asks for would replace numpy and bring trackers
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]  # as tests/browser.py looks for them
NEEDED_GB = {"cpu": 1, "gpu": 8, "dev": 3}  # torch with CUDA takes 6 GB, for a CPU 1; pip unpacks beside it


def main():
    folder = os.path.join(HERE, sys.argv[1] if len(sys.argv) > 1 else ".venv")
    extra = sys.argv[2] if len(sys.argv) > 2 else "cpu"
    check_python()
    check_disk(NEEDED_GB.get(extra, 3))
    python = os.path.join(folder, "bin", "python")
    if not works(python):
        say("making %s with Python %d.%d.%d" % ((os.path.relpath(folder, HERE),) + sys.version_info[:3]))
        run([sys.executable, "-m", "venv", "--clear", folder], "the virtual environment could not be made")
    say("installing Celadon (a first time takes a minute or a few)")
    begun = time.time()
    target = "%s[%s]" % (HERE, extra)
    command = [python, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
    command += ["--constraint", os.path.join(HERE, "constraints.txt"), "--editable", target]
    pip(command)
    if extra == "dev":
        pip(command[:-2] + ["--no-deps"] + ORACLES)
        browser()
    say("installed in %.0f s" % (time.time() - begun))


def browser():
    """A Chromium for the tests of the studio page: the system's own. Where it can be installed without asking, it is."""
    if os.environ.get("CHROMIUM") or any(map(shutil.which, BROWSERS)):
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        say("installing Chromium for the tests of the studio page")
        quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium"
        if subprocess.call(["sh", "-c", install], stdout=subprocess.DEVNULL, env=quiet) == 0:
            return
    say("no Chromium was found: tests/test_studio.py needs one. Debian, Ubuntu: sudo apt install chromium; or name yours in CHROMIUM")


def check_python():
    """Python, venv and ensurepip: Debian ships them apart."""
    version = "%d.%d" % sys.version_info[:2]
    if sys.version_info < OLDEST:
        stop("Python %s is too old: Celadon needs 3.11 or newer. Debian, Ubuntu: sudo apt install python3.11 python3.11-venv" % version)
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        stop("Python %s has no venv or ensurepip here. Debian, Ubuntu: sudo apt install python%s-venv" % (version, version))


def check_disk(needed):
    free = shutil.disk_usage(HERE).free / 1e9
    if free < needed:
        stop("only %.1f GB are free here; %d GB are needed. Make room and run the same command again" % (free, needed))


def works(python):
    """Whether that interpreter runs, is new enough and has pip: a half-made or moved environment is made again."""
    probe = "import sys, pip; sys.exit(sys.version_info < %r)" % (OLDEST,)
    try:
        return subprocess.run([python, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def run(command, complaint):
    if subprocess.call(command, cwd=HERE):
        stop(complaint)


def pip(command):
    """Run pip; on a terminal one line tells what it is at, and if it fails its last lines tell why."""
    last = collections.deque(maxlen=20)
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    for line in process.stdout:
        last.append(line)
        if sys.stdout.isatty() and line.lstrip().startswith(("Collecting", "Downloading", "Installing")):
            print("\r\033[K  " + line.strip()[:76], end="", flush=True)
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)
    if process.wait():
        sys.stderr.writelines(last)
        stop("pip failed, see above. Behind a proxy set HTTPS_PROXY; then run the same command again")


def say(line):
    print("celadon: " + line, flush=True)


def stop(line):
    sys.exit("celadon: " + line)


if __name__ == "__main__":
    main()
