CREATE TABLE term (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    registry TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    token INTEGER NOT NULL DEFAULT 0,
    sequence INTEGER NOT NULL DEFAULT 0,
    trimmed_to INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE specs (
    slot INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    name TEXT NOT NULL,
    spec BLOB NOT NULL,
    registered_unix_s REAL NOT NULL,
    "by" TEXT NOT NULL,
    source TEXT NOT NULL,
    "order" INTEGER NOT NULL,
    PRIMARY KEY (slot, generation)
) STRICT;
CREATE TABLE states (
    slot INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    life TEXT NOT NULL,
    host TEXT NOT NULL,
    warden TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    token INTEGER NOT NULL,
    pid INTEGER,
    pid_start INTEGER,
    started_unix_s REAL,
    ready INTEGER NOT NULL,
    stopping TEXT,
    stop_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    rule TEXT NOT NULL,
    restart_delay_s REAL,
    starts INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    streak INTEGER NOT NULL,
    trimmed_to INTEGER NOT NULL,
    last_exit BLOB NOT NULL,
    PRIMARY KEY (slot, generation),
    FOREIGN KEY (slot, generation) REFERENCES specs ON DELETE CASCADE
) STRICT;
CREATE TABLE slots (slot INTEGER PRIMARY KEY, generation INTEGER NOT NULL) STRICT;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE hosts (
    name TEXT PRIMARY KEY,
    machine_id TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    offer BLOB NOT NULL,
    heard_unix_s REAL NOT NULL,
    up INTEGER NOT NULL,
    draining INTEGER NOT NULL
) STRICT;
CREATE TABLE requests (
    place INTEGER PRIMARY KEY,
    principal TEXT NOT NULL,
    request BLOB NOT NULL,
    digest BLOB NOT NULL,
    kind INTEGER NOT NULL,
    result BLOB NOT NULL,
    at_unix_s REAL NOT NULL,
    UNIQUE (principal, request)
) STRICT;
