"""The heavy half: each job is packed, sent to a folder of its own, run there and brought home.

The folder stands for another machine: replace `make_folder`, `start`, `stop`, `stop_other` and `is_held` by what starts
and ends a process there and asks whether it runs, and copy the folders that `pack` writes and `bring_home` reads.
"""

import shutil
import sys
from pathlib import Path

from llmquant.errors import StoreError, UnsupportedError
from llmquant.executors.shipping import bring_home, pack, unpack
from llmquant.executors.worker_process import how_it_ended, is_held, make_folder, start, stop, stop_other
from llmquant.machine.hardware import cpu_label


class NewPlugin:
    """Starts, follows and ends processes; which jobs run, and when, is decided by llmquant's scheduler."""

    name = "newplugin"
    outlives = False  # jobs end with the program that submitted them
    installs = False  # the packages that are installed here are used
    device = "cpu"
    notices = ()

    def __init__(self, options):
        self.slots, self.threads = options.slots, options.threads
        self._processes = {}
        self._stores = {}

    @property
    def hardware(self):
        """Name the hardware, on which timings and memory depend."""
        return cpu_label(self.device, self.threads)

    def check(self, jobs, *, running=()):
        """Return the maximum cost of the jobs; ``None``, because running is free."""

    def submit(self, job, store):
        """Send a job away and start its worker; return an id from which any process finds the job again."""
        folder = make_folder()
        pack(job, store, folder / "packed", with_model=False)  # local checkpoints are read where they are
        record, there = unpack(folder / "packed", folder)
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        process = start(folder, record, there, search=[path for path in sys.path if path], environment=environment)
        job_id = f"{process.pid}:{record}"
        self._processes[job_id], self._stores[job_id] = process, store
        return job_id

    def collect(self, job_id, store):
        """Copy what is new, without tokens, and return the job's state; called several times per second."""
        process = self._processes.get(job_id)
        if process is None:  # another program submitted the job
            state = "running" if is_held(_folder(job_id)) else "lost"
        else:
            code = process.poll()
            state = "running" if code is None else "ended" if code == 0 else "lost"
        _bring_home(job_id, store, ended=state != "running")
        return state

    def why_lost(self, job_id):
        """Describe in a clause how a lost job ended."""
        process = self._processes.get(job_id)
        return "the worker no longer exists" if process is None else how_it_ended(process.returncode)

    def dollars(self, job_id):
        """Return the cost of a job that has ended; ``None``, because running is free."""

    def cancel(self, job_id):
        """End the job and its children, bring home what it wrote, and return when it has ended."""
        if job_id not in self._processes:
            stop_other(int(job_id.partition(":")[0]), _folder(job_id))
            return
        stop(self._processes[job_id])
        _bring_home(job_id, self._stores[job_id], ended=True)

    def leave(self, job_id):
        """Refuse to leave jobs, which end with this program."""
        raise UnsupportedError("jobs of newplugin end with the program that started them")

    def recall(self, study, store):
        """Refuse studies of other machines, which are not kept."""
        raise StoreError(f"study {study} is missing from {store}, and newplugin keeps no studies")

    def close(self):
        """End the jobs that still run."""
        for job_id in self._processes:
            self.cancel(job_id)


def _folder(job_id):
    return _store(job_id).parent


def _store(job_id):
    return Path(job_id.partition(":")[2]).parents[3]  # FOLDER/store/studies/STUDY/jobs/NUMBER.json


def _bring_home(job_id, store, *, ended):
    record = Path(job_id.partition(":")[2])
    bring_home(_store(job_id), store, record.parents[1].name, int(record.stem), ended=ended)
    if ended:  # the log there may hold tokens
        shutil.rmtree(_folder(job_id), ignore_errors=True)
