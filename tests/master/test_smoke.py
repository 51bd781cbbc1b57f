def test_register_start_exit_restart_terminate(town):
    host = town.host("b")
    client = town.client()
    client.follow()
    answer = client.register("w", host="b", restart_time=5)
    start = host.run()
    assert client.status("w").state == "started"
    host.end(start, signal=9, cause="signaled")
    status = client.status("w")
    assert status.state == "stopped" and not status.final
    town.pass_time(6)
    start = host.run(pid=5)
    assert client.status("w").pid == 5
    client.terminate("w")
    host.obey_stop(start)
    assert client.status("w").final
    print([(e.kind, e.reason, e.rule) for e in client.events()])
    town.crash()
    assert town.client().status("w").final
