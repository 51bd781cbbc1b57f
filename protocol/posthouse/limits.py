"""Every bound of the system, in one place, each with its reason.

Owns: the numbers. Must not know: who enforces them.
Invariant: no queue, frame, name, table or retry elsewhere has a literal bound of its own.
"""

from typing import Final

# --- names and values of a registration (PostgreSQL's own where it has one) ---
name_bytes_max: Final = 96  # BGW_MAXLEN (F1)
type_bytes_max: Final = 96  # as the name (F2)
library_bytes_max: Final = 1024  # MAXPGPATH (F12)
function_bytes_max: Final = 96  # BGW_MAXLEN (F13)
main_arg_bytes_max: Final = 65_536  # a Datum is 8 bytes; U14 asks for real payloads (F14)
extra_bytes_max: Final = 65_536  # BGW_EXTRALEN is 128; same complaint (F15)
value_depth_max: Final = 12  # nesting of main_arg; a page of workers nests 4 around it, to make 16
array_items_max: Final = 4096  # 1 MiB of empty arrays decodes to 72 MiB without it
map_items_max: Final = 256  # same, for maps
restart_time_s_max: Final = 86_400_000  # 1000 days, PostgreSQL's own (F10)
restart_budget_starts: Final = 50  # default budget: far more than any program that can work needs
restart_budget_window_s: Final = 10.0  # so a failing loop goes on at 5 starts/s, 1% of a core
restart_budget_group_starts: Final = 100  # of all flapping members: a bad deployment of a group
restart_budget_host_starts: Final = 200  # of all flapping workers: 20 a second, 5 % of two cores
restart_budget_cluster_starts: Final = 2000  # the same for ten hosts' worth of them
restart_budget_starts_max: Final = 1000  # times that are remembered for one worker
restart_growth_s_min: Final = 0.1  # what grows where restart_time is 0
restart_grown_s_max: Final = 300.0  # ceiling of growth without a restart_time_max: Nomad's is 300
healthy_s: Final = 10.0  # a worker that ran so long has not failed at its start
stop_grace_s_max: Final = 3600.0  # a stop that takes longer than an hour is not a stop
label_bytes_max: Final = 64  # shown in tables
labels_max: Final = 32  # a host or worker with more is a database
env_items_max: Final = 128  # execve's own limit is far higher; this keeps START in one frame
env_bytes_max: Final = 32_768  # all names and values together
path_bytes_max: Final = 1024  # MAXPGPATH
rlimits_max: Final = 16  # Linux has 16 resources
wide_text_bytes_max: Final = 4096  # hints, reasons and other sentences on the wire
argv_items_max: Final = 1024  # posthouse.exec

# --- frames ---
agent_frame_bytes_max: Final = 262_144  # START with full main_arg, extra and env fits in it
client_frame_bytes_max: Final = 262_144  # REGISTER carries the same record as START
frame_body_bytes_max: Final = 262_080  # the envelope around it takes at most 48 bytes
frame_depth_max: Final = 16  # depth 500 decodes in msgpack; nothing of ours nests deeper
page_bytes_max: Final = 65_536  # inventory, lists and events travel in pages of this size
page_items_max: Final = 256  # and never more entries than this
session_bytes: Final = 16  # 128 random bits
request_id_bytes: Final = 16  # 128 random bits, chosen by the client
int_max: Final = 2**63 - 1  # int64 is what every language and SQLite have

# --- link ---
outbox_messages_max: Final = 1024  # unacknowledged messages a link holds before it is full
outbox_bytes_max: Final = 8 * 1024 * 1024  # and their bytes
resend_s: Final = 1.0  # an unacknowledged message is sent again after this; a round trip is < 1 ms
repetitions_max: Final = 20  # in vain, a second each: whoever is heard all that time reads nothing
commands_waiting_max: Final = 8192  # for room in an agent's link: eight stops for each of its slots
ack_delay_s: Final = 0.05  # a pure ACK waits this long for a message to ride on
renew_s: Final = 0.5  # pace of RENEW; one arrives from a host that hears nothing, then TCP stops
silence_s: Final = 2.4  # without a frame, or a GRANT: with renew_s, host loss is seen within 3 s
alone_s: Final = 3.0  # without a session: then a host restarts kept workers itself; above silence_s
reserved_tokens_max: Final = 16  # of a kept worker: the first minutes of a crash loop
return_s: Final = 10.0  # for the hosts of an earlier term: 500 at once are back in half of it
dial_backoff_s_min: Final = 0.1  # first redial
dial_backoff_s_max: Final = 2.0  # later ones; jittered, so a fleet does not return in lockstep
peers_max: Final = 8192  # sessions the master holds; one descriptor each
master_silence_s: Final = 30.0  # no master for this long: a waiter is told POSTMASTER_DIED
renewals_remembered: Final = 64  # stamps a dialler remembers having sent; others extend nothing
subscriptions_per_session_max: Final = 1024  # a client with more wants cluster.events()
credit_max: Final = 4096  # events a watcher may ask for ahead
requests_in_flight_max: Final = 1024  # per client session
waiting_calls_max: Final = 4096  # calls of one client that wait for an answer
client_thread_s: Final = 5.0  # a client's thread that takes longer over an input is stuck
edge_s: Final = 1.0  # ZMQ_FD tells edges: an event loop looks this often whether it missed one

line_frames_max: Final = 256  # a dialler's frames that wait for the connection; the link resends
line_bytes_max: Final = 1024 * 1024  # and their bytes
keys_per_principal_max: Final = 2  # the old and the new one while a key is replaced

# --- registry ---
workers_per_cluster_max: Final = 100_000  # default of max_worker_processes, cluster
workers_per_host_max: Final = 1_000  # default of max_worker_processes, per host
group_members_max: Final = 10_000  # one record's replicas; as a whole declaration
declaration_workers_max: Final = 10_000  # carried out in about 2 s, within which no agent gives up
declaration_bytes_max: Final = 32 * 1024 * 1024  # records held before their APPLY, of one session
declarations_held_max: Final = 16  # sessions that may upload at the same time
preload_libraries_max: Final = 32  # processes at once as a master begins: some 30 MB each
preload_timeout_s_max: Final = 60.0  # for all of them; systemd gives a start 90 s
preload_frames_max: Final = 10_001  # of one library: a declaration's workers and the end
preload_output_bytes_max: Final = 8_192  # of what a library prints, its end; the log has it
host_web_connections_max: Final = 16  # at a time, each with a thread of an agent; more are closed
host_web_request_bytes_max: Final = 8_192  # of a GET with its headers
host_web_s: Final = (
    5.0  # for a request to come, for an agent's loop to answer, for a reader to read
)
metrics_workers_max: Final = 5_000  # names with series of their own: a page of 1.6 MB at the most
reports_max: Final = 32  # of what is wrong with a configuration, told by ps and /readyz
report_chars_max: Final = 512  # of one of them
hosts_max: Final = 1_024  # twice the 500 hosts of the mission
retired_max: Final = 10_000  # retired registrations that stay listed
events_per_registration_max: Final = 256  # a storm trims only its own history
events_total_max: Final = 2_000_000  # backstop over all registrations
requests_kept_max: Final = 100_000  # remembered request results
requests_kept_s: Final = 86_400.0  # a retry a day later is a new request
checkpoint_rows: Final = (
    1000  # written to the -wal file before it is emptied: some 4 MiB (SQLite's own)
)
wal_kept_bytes: Final = 8 * 1024 * 1024  # of the -wal file after a larger transaction
reserve_bytes: Final = (
    16 * 1024 * 1024
)  # kept beside the registry for ends of workers on a full disk
hostile_bytes_max: Final = 64 * 1024 * 1024  # that 1,000 strangers, or a flood, cost a master
recovery_s: Final = 660.0  # after a restore: the longest lease that an unknown host can have had
unclaimed_records_max: Final = 10_000  # of processes, that are asked for without being claimed
disk_low_bytes: Final = 8 * 1024 * 1024  # free beside the reserve; less, and nothing new is begun
disk_none_bytes: Final = 4 * 1024 * 1024  # free without the reserve; less, and nothing is written
lead_look_s: Final = 1.0  # a master whose registry is another's grants no longer than this
disk_look_s: Final = 0.2  # between two looks at the free space: one can be filled in seconds
disk_probe_s_max: Final = 10.0  # between two attempts to make the reserve again
token_ahead_max: Final = 2**32  # of what the registry drew; 1,000 starts a second for 50 days
read_output_s: Final = 10.0  # for a host to answer; a page is read in milliseconds
answers_waiting_max: Final = 1024  # for room in a client's link: as many as it may have asked for
starts_in_flight_max: Final = 16  # of one host: keeps it busy, and a stop waits 100 ms for its turn
failing_start_later_s: Final = 1.0  # who fails again and again has its place in line from then on
start_attempt_s: Final = 60.0  # a START unanswered on a live session this long is asked about again

starts_per_round: Final = 128  # that a change of the phase leads to between two looks at events
shutdown_away_s: Final = 10.0  # for a host that is away to be heard: its agent may be starting anew
phase_look_s: Final = 1.0  # between two questions to the followed server: promotion is seen in 1 s
phase_answer_s: Final = 5.0  # for one of its answers; a server that takes longer is not reachable
phase_words_max: Final = 16  # of it that wait for the loop; older ones are out of date
phase_detail_chars_max: Final = 512  # of what it says; it is part of each reason of who waits

# --- host ---
link_room_kept: Final = 64  # of a link's outbox that an agent's reports never use: goodbye, answers
log_reads_in_flight_max: Final = 32  # of 64 KiB each; a master that asks for more is told to wait
chores_queued_max: Final = 64  # the log reads, a warden's start, and room
log_lines_queued_max: Final = 4096  # of an agent whose standard error does not take them; then lost
last_messages_max: Final = 64  # read from the channel of a worker that has ended
warden_wait_s: Final = 20.0  # a start waits so long for its warden, or the fuse, to be ready
warden_orders_max: Final = 8192  # given and not read by a warden; then it is taken for lost
warden_backoff_s_min: Final = 0.2  # second attempt to start a warden that did not last
warden_backoff_s_max: Final = 5.0  # later ones; a warden that lived this long is forgiven
allowed_modules_max: Final = 256  # entries of a host's allow-list; they travel in HELLO
allowed_users_max: Final = 64  # entries of a host's run_as list
runtimes_max: Final = 64  # runtimes of one host
runtime_bytes_max: Final = (
    65_536  # path, env and preload of one: with the largest START still one order
)
databases_max: Final = 32  # [databases.NAME] of one host: their names and URLs travel with a START
database_url_bytes_max: Final = 1_024  # as a path
databases_bytes_max: Final = 16_384  # all of them: with the largest START still one order
database_connect_s: Final = 10.0  # for a server to answer a connection; psycopg's own is no end
database_silence_s: Final = 30.0  # of a server that is cut off; then the connection counts as lost
database_busy_s: Final = 5.0  # that SQLite waits for the lock of another process's transaction
database_cancel_s: Final = 2.0  # for a server to take the request to cancel a statement
notifications_kept_max: Final = 4_096  # that a worker has not taken; older ones go: they are hints
application_name_bytes_max: Final = 63  # NAMEDATALEN - 1: PostgreSQL cuts longer ones
runtime_files_max: Final = 4_096  # loaded files that are looked at before a start: 1.5 us each
zygote_load_s: Final = 300.0  # for what a runtime preloads; torch on a busy machine takes a minute
zygote_wait_s: Final = 20.0  # a start waits so long for its runtime, then it is one that failed
zygote_message_bytes_max: Final = 2 * 1024 * 1024  # the largest START, its bytes as text
spares_min: Final = 1  # processes that wait for a start, a runtime in use; below, more are forked
spares_max: Final = 3  # up to so many: one fork in the middle is for two spares then
spares_at_once_max: Final = 8  # a spare is not ours before the last one of its fork is there
exit_tail_bytes_max: Final = 4_096  # last output in an exit record: a traceback's worth
exit_tail_lines_max: Final = 40  # and never more lines
traceback_bytes_max: Final = 16_384  # the traceback of an uncaught error
watchdog_late_s: Final = 1.0  # a look that comes so late says more of the warden than of workers
warden_reports_max: Final = 200_000  # for an agent that does not read; a snapshot fits in it
warden_callers_max: Final = 16  # connections that have not said Attach yet
warden_frame_bytes_max: Final = 262_144  # agent <-> warden, one SEQPACKET message
channel_frame_bytes_max: Final = (
    131_072  # worker <-> agent; a registration with a full main_arg fits
)
worker_request_bytes_max: Final = 196_608  # a full record, packed; with its envelope one frame
vouch_s: Final = 2.0  # an agent says at once who asks it for its word; it may be stopped
vouch_bytes_max: Final = 2048  # of that word: two names, two numbers, a mark, or an error
vouches_max: Final = 16  # given in a row, before the master is listened to again
worker_repeat_s: Final = 1.0  # a worker asks again: its agent or the master may have changed
exit_records_max: Final = 100_000  # unconfirmed exits a warden keeps; it refuses starts beyond
log_read_bytes_max: Final = 65_536  # one page of a worker's log
log_bytes_max: Final = 16 * 1024 * 1024  # default size of one worker's kept output
log_bytes_min: Final = 65_536  # smallest bound of one; what is left of it when the disk fills up
log_line_bytes_max: Final = 65_536  # a longer line may be cut in two where output is bounded
log_copied_bytes_max: Final = 16 * 1024 * 1024  # by a warden, where no holes can be punched: 20 ms
log_total_bytes_max: Final = 16 * 1024**3  # default of a log folder: a thousand full ones
log_files_max: Final = 20_000  # of a folder: the slots of a full host twenty times over
log_free_bytes_min: Final = 64 * 1024 * 1024  # of its disk, which journals and registries may share
log_look_s: Final = 1.0  # between two looks at the files of running workers
log_busy_s: Final = 0.1  # the same while one of them outgrows its bound
log_tidy_s: Final = 10.0  # between two looks at the whole folder
stacks_bytes_max: Final = 65_536  # of one dump; a hundred frames take 6 KiB
stacks_s: Final = 2.0  # for a process to write it: one that is stopped, or in a disk's wait, cannot
stacks_quiet_s: Final = 0.1  # nothing more has come for so long: it is complete
stack_reads_max: Final = 4  # dumps of a host that are waited for
unkillable_s: Final = 3.0  # KILL takes a millisecond: what is there after this is held somewhere
stuck_text_max: Final = 512  # which processes those are, and where
files_looked_at_s: Final = 2.0  # a warden's look whether its socket and journal are still there
leftovers_grace_s: Final = 1.0  # for multiprocessing's resource tracker and others that end by EOF
journal_slack_bytes: Final = 1024 * 1024  # a warden's journal grows by this before it is rewritten
journal_ahead_bytes: Final = 65_536  # disk space taken in advance, so that an exit can be recorded
exit_callbacks_max: Final = 20  # MAX_ON_EXITS, of each kind (W6)
segment_bytes_max: Final = 1024**3  # shm_mq's own bound of a message; one above is a database
segment_key_bytes_max: Final = 80  # a name of 63 bytes, as PostgreSQL's, and its kind before it
segment_name_bytes_max: Final = 63  # NAMEDATALEN - 1
segment_seats_max: Final = 4096  # ends of queues in one segment: two thousand queues
domains_max: Final = 256  # crash domains of a host: one an application, and some for tests
domain_segments_max: Final = 1024  # PostgreSQL has 64 and 5 for each process
domain_bytes_max: Final = 4 * 1024**3  # of one crash domain: more is a host's that has none left
domain_structs_max: Final = 64  # that libraries request in one; with the largest START one frame
domain_window_s: Final = 60.0  # a second reset so soon waits for restart_time, as a crash does
domain_resets_max: Final = 16  # that are counted
memory_asks_max: Final = 64  # unanswered questions of one worker about shared memory
memory_message_bytes_max: Final = 4096  # names and numbers
lock_wait_s: Final = 10.0  # for a lock, unless told otherwise: no one holds it for a second
lock_look_s_max: Final = 0.002  # between two looks at a lock that is held
locks_held_max: Final = 200  # MAX_SIMUL_LWLOCKS (K20)
queue_message_bytes_max: Final = 1024**3 - 1  # MaxAllocSize, as shm_mq (K11)
queue_look_s: Final = 0.25  # between two questions whether an expected peer still is to come
postmaster_grace_s: Final = 5.0  # QUIT to KILL in immediate shutdown and crash (PostgreSQL's own)

# --- daemons ---
drain_messages_max: Final = 512  # inputs handled before one commit; bounds the latency of a batch
config_bytes_max: Final = 1024 * 1024  # a configuration of a megabyte is something else
socket_path_bytes_max: Final = 107  # sun_path is 108 bytes with its NUL
lease_s_min: Final = 5.0  # below, a lost RENEW or two would end a healthy host's workers
lease_s_max: Final = 3600.0  # how long a cut-off host may run what is placed nowhere else
lease_s: Final = 30.0  # default: longer than a restart of master or agent, short of people's notice
lease_ahead_s: Final = (
    0.5  # before the deadline workers are killed one by one, so each end is known
)
clock_drift: Final = 0.002  # two hosts' clocks run at rates that differ by no more than this share
lease_margin_s: Final = 2.0  # beyond the lease; a timer that kills was late by 7 ms at the most
handover_s: Final = 600.0  # the lease at a planned end of the master: time to install its successor
mass_loss_share: Final = 0.4  # of all hosts: more is the master's own network, or a switch
mass_loss_hosts_min: Final = 3  # with fewer, one host is a mass
mass_loss_wait_s: Final = 600.0  # for somebody to say that they are dead; then they count as it
