"""Workers with SHMEM_ACCESS of one real warden a file, each test in a crash domain of its own.

A test module names in JOBS the module of its workers' functions.
"""

import zlib

import pytest

from posthouse_agent.orders import Ended, Forked, SignalWorker, StopWorker

SHMEM = 1
TERM, KILL = 15, 9


class Memory:
    """Orders about such workers, and what they say."""

    def __init__(self, host, agent, jobs, domain, eventually):
        self.host, self.agent, self.jobs, self.domain = host, agent, jobs, domain
        self.eventually = eventually

    def on(self, host):
        """The same on another host, or after its warden began anew."""
        return Memory(host, host.agent(), self.jobs, self.domain, self.eventually)

    def _spec(self, spec):
        return {"flags": SHMEM, "crash_domain": self.domain, **spec}

    def begin(self, main, arg=None, **spec):
        """Start it and wait until it has said something: the Forked."""
        return self.host.begin(self.agent, f"{self.jobs}:{main}", arg, **self._spec(spec))

    def order(self, main, arg=None, **spec):
        """Have it started: the order."""
        order = self.host.order(f"{self.jobs}:{main}", arg, **self._spec(spec))
        self.agent.give(order)
        self.agent.expect(Forked, order.token)
        return order

    def run(self, main, arg=None, code=0, **spec):
        """From its start to its end with this code: what it has said."""
        ended = self.host.run(self.agent, f"{self.jobs}:{main}", arg, **self._spec(spec))
        assert ended.facts.get("code") == code, (ended.facts, self.host.warden_log())
        return self.host.said(ended.slot)

    def said(self, forked):
        """What it has said so far, once it has said something."""
        there = self.host.log_path(forked.slot)
        return self.eventually(lambda: there.exists() and self.host.said(forked.slot))

    def ended(self, forked):
        return self.agent.expect(Ended, forked.token)

    def kill(self, forked, signal=KILL):
        """A signal from outside: its Ended."""
        self.agent.give(SignalWorker(token=forked.token, signal=signal))
        return self.ended(forked)

    def end(self, *many, signal=TERM):
        for forked in many:
            token, slot = forked.token, forked.slot
            self.agent.give(
                StopWorker(token=token, slot=slot, reason="terminate", signal=signal, grace_s=5)
            )
            self.ended(forked)


@pytest.fixture(name="host")
def _host(shared_host):
    return shared_host


@pytest.fixture(name="agent")
def _agent(shared_agent):
    return shared_agent


@pytest.fixture(name="domain")
def _domain(request):
    return f"d{zlib.crc32(request.node.name.encode())}"


@pytest.fixture(name="memory")
def _memory(shared_host, shared_agent, request, domain, eventually):
    return Memory(shared_host, shared_agent, request.module.JOBS, domain, eventually)
