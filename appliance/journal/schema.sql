-- The journal's tables. A row is born in the transaction of the stage that causes it; from then on its owner alone
-- changes it. Times: tick = milliseconds of appliance time (clock.py), at = UTC for people. Order is by id, never by time.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,           -- schema, journal_id, boot_id, boot_base_ms, last_tick, keep DESTINATION
    value TEXT NOT NULL
) WITHOUT ROWID;

-- A fact: these bytes were received, or built here as a result. Never changed, never deleted. Born: receive, report.
CREATE TABLE instance (
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL,           -- received | result
    kind TEXT NOT NULL,             -- image | sr | sc
    sop_class_uid TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    digest BLOB NOT NULL,           -- BLAKE3 of the data set
    size INTEGER NOT NULL,          -- bytes of the data set
    study_instance_uid TEXT NOT NULL,   -- '' = unsorted
    series_instance_uid TEXT NOT NULL,
    modality TEXT NOT NULL,
    patient BLOB NOT NULL,          -- hash that tells patients apart, names none; of a result: its inputs'
    calling_ae TEXT NOT NULL,
    job INTEGER,                    -- of a result
    tick INTEGER NOT NULL,
    at TEXT NOT NULL,
    UNIQUE (sop_instance_uid, digest, transfer_syntax_uid)
);
CREATE INDEX instance_of_job ON instance (job) WHERE job IS NOT NULL;
CREATE INDEX instance_by_series ON instance (study_instance_uid, series_instance_uid);
CREATE INDEX result_of_study ON instance (study_instance_uid) WHERE origin = 'result';

-- A file in the spool that holds an instance. Born with the instance; owner: retain, which deletes the row and then
-- the file. No row: the local copy was released.
CREATE TABLE copy (
    file TEXT PRIMARY KEY,
    instance INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX copy_by_instance ON copy (instance);

-- How much came in each hour of appliance time, some two weeks of it; and how much is held: what `status` reckons with.
-- Kept by triggers, in the transaction that causes it: no stage can forget it, and nobody counts a million rows.
CREATE TABLE intake (
    hour INTEGER PRIMARY KEY,       -- tick / 3,600,000
    instances INTEGER NOT NULL,
    bytes INTEGER NOT NULL          -- of data sets
);
CREATE TRIGGER instance_came AFTER INSERT ON instance WHEN NEW.origin = 'received' BEGIN
    DELETE FROM intake WHERE hour <= NEW.tick / 3600000 - 336;
    INSERT INTO intake VALUES (NEW.tick / 3600000, 1, NEW.size)
        ON CONFLICT (hour) DO UPDATE SET instances = instances + 1, bytes = bytes + excluded.bytes;
END;
CREATE TABLE held (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    copies INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
INSERT INTO held VALUES (1, 0, 0);
CREATE TRIGGER copy_kept AFTER INSERT ON copy BEGIN
    UPDATE held SET copies = copies + 1, bytes = bytes + (SELECT size FROM instance WHERE id = NEW.instance);
END;
CREATE TRIGGER copy_released AFTER DELETE ON copy BEGIN
    UPDATE held SET copies = copies - 1, bytes = bytes - (SELECT size FROM instance WHERE id = OLD.instance);
END;

-- Owner: receive.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    modality TEXT NOT NULL,
    calling_ae TEXT NOT NULL,
    state TEXT NOT NULL,            -- states.SeriesState
    revision INTEGER NOT NULL,
    arrivals INTEGER NOT NULL,
    stated_count INTEGER NOT NULL,
    first_tick INTEGER NOT NULL,
    last_tick INTEGER NOT NULL,     -- of the last arrival, repeats included
    released INTEGER NOT NULL,      -- 1: the peer released its last association since the last arrival
    interrupted INTEGER NOT NULL,   -- 1: the last association that brought something was aborted or lost
    evidence TEXT NOT NULL,
    UNIQUE (study_instance_uid, series_instance_uid)
);
CREATE INDEX series_open ON series (id) WHERE state = 'open';   -- few: an arrival need not move them in it

-- Pauses between arrivals within a series, per sender, in bins of powers of two of a millisecond. Owner: receive.
CREATE TABLE gap (
    calling_ae TEXT NOT NULL,
    bin INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    PRIMARY KEY (calling_ae, bin)
) WITHOUT ROWID;

-- One engine's duty to one instance, series or study. Owner: analyse.
CREATE TABLE job (
    id INTEGER PRIMARY KEY,
    engine TEXT NOT NULL,           -- id@version
    scope TEXT NOT NULL,            -- instance | series | study
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,  -- scope study: '' until the preferred series is chosen
    sop_instance_uid TEXT NOT NULL,
    subject TEXT NOT NULL,          -- the UID that the duty is to
    revision INTEGER NOT NULL,
    state TEXT NOT NULL,            -- states.JobState
    input_digest TEXT NOT NULL,
    last_instance_id INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    deadline_tick INTEGER NOT NULL,
    evidence TEXT NOT NULL,
    predecessor TEXT NOT NULL,
    provisional_digest TEXT NOT NULL,   -- inputs of an early run whose outcome is kept until the evidence holds
    outcome TEXT,                   -- JSON of model.Outcome; provisional until state is concluded
    concluded_at TEXT NOT NULL,
    implausible_clock INTEGER NOT NULL,
    UNIQUE (engine, subject, revision)
);
CREATE INDEX job_unfinished ON job (id) WHERE state NOT IN ('reported', 'superseded');
CREATE INDEX job_by_study ON job (study_instance_uid);

-- How far analyse has looked at the instance table, and how often it tried to build a result. Owner: analyse.
CREATE TABLE cursor (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

-- What `status` tells of patient identities for some days. Owner: analyse.
CREATE TABLE alarm (
    event TEXT NOT NULL,            -- journal.identity.AlarmEvent
    study_instance_uid TEXT NOT NULL,
    patient BLOB NOT NULL,          -- of the newcomer, as in instance
    tick INTEGER NOT NULL,
    PRIMARY KEY (event, study_instance_uid, patient)
) WITHOUT ROWID;

-- One instance owed to one destination. Born with the instance; owner: forward.
CREATE TABLE delivery (
    id INTEGER PRIMARY KEY,
    instance INTEGER NOT NULL,
    destination TEXT NOT NULL,      -- '' = unrouted
    urgency INTEGER NOT NULL,
    size INTEGER NOT NULL,
    state TEXT NOT NULL,            -- states.DeliveryState
    attempts INTEGER NOT NULL,
    reason TEXT NOT NULL,           -- why held or abandoned; the warning of a delivered one
    created_tick INTEGER NOT NULL,
    started_tick INTEGER NOT NULL,  -- of the attempt that settled it
    settled_tick INTEGER NOT NULL
);
CREATE INDEX delivery_queued ON delivery (destination, urgency, id, size) WHERE state = 'queued';
CREATE INDEX delivery_held ON delivery (destination, id, size) WHERE state = 'held';
CREATE INDEX delivery_by_instance ON delivery (instance);
CREATE INDEX delivery_urgent ON delivery (instance) WHERE urgency IN (0, 1, 3);   -- few; see urgency.py

-- What a peer asked us to answer for (storage commitment, PS3.4 Annex J), and so our promise to report. Born: receive;
-- never changed; owner: retain, which deletes it some days after it was reported.
CREATE TABLE commitment_request (
    id INTEGER PRIMARY KEY,
    calling_ae TEXT NOT NULL,       -- who asked, and is told
    called_ae TEXT NOT NULL,        -- as whom it knows us
    transaction_uid TEXT NOT NULL,
    count INTEGER NOT NULL,         -- of references
    tick INTEGER NOT NULL,
    at TEXT NOT NULL,
    refs BLOB NOT NULL,             -- zlib of JSON: [SOP class UID, SOP Instance UID], ...; last, since it is long
    UNIQUE (calling_ae, transaction_uid)
);

-- What is reported of it. No row: not judged yet. Owner: forward; deleted with its request.
CREATE TABLE commitment_report (
    request INTEGER PRIMARY KEY,
    state TEXT NOT NULL,            -- states.ReportState
    judged_tick INTEGER NOT NULL,
    reported_tick INTEGER NOT NULL,
    failed BLOB NOT NULL            -- zlib of JSON: [position among the references, failure reason], ...
);
CREATE INDEX commitment_reported ON commitment_report (reported_tick) WHERE state = 'reported';

-- Destinations that must answer for what they got (config: proof). `walked`: what was delivered before it had to is in
-- `proof`, too. Owner: forward.
CREATE TABLE proving (
    destination TEXT PRIMARY KEY,
    walked INTEGER NOT NULL
) WITHOUT ROWID;

-- A delivery that its destination must still answer for; it goes with the state that ends that. Born by trigger, in the
-- transaction that settles it: no lane can forget it. Owner: forward.
CREATE TABLE proof (
    delivery INTEGER PRIMARY KEY,
    destination TEXT NOT NULL,
    waiting INTEGER NOT NULL,       -- 0: it is being sent again
    request INTEGER NOT NULL,       -- the proof_request that asks for it now; 0: none
    failures INTEGER NOT NULL       -- times that the destination did not answer for it
);
CREATE INDEX proof_due ON proof (destination, delivery) WHERE waiting=1 AND request=0;
CREATE INDEX proof_of_request ON proof (request) WHERE request<>0;
CREATE TRIGGER proof_needed AFTER UPDATE OF state ON delivery
WHEN NEW.state = 'delivered' AND EXISTS (SELECT 1 FROM proving WHERE destination = NEW.destination) BEGIN
    INSERT INTO proof VALUES (NEW.id, NEW.destination, 1, 0, 0)
        ON CONFLICT (delivery) DO UPDATE SET waiting = 1, request = 0;
END;
CREATE TRIGGER proof_over AFTER UPDATE OF state ON delivery
WHEN NEW.state IN ('committed', 'held', 'abandoned') BEGIN
    DELETE FROM proof WHERE delivery = NEW.id;
END;

-- A transaction of storage commitment (PS3.4 Annex J), noted before a destination is asked. Owner: forward, which
-- forgets it some days after it was answered.
CREATE TABLE proof_request (
    id INTEGER PRIMARY KEY,
    destination TEXT NOT NULL,
    transaction_uid TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,            -- states.ProofState
    tick INTEGER NOT NULL,
    refs BLOB NOT NULL              -- zlib of JSON: [delivery, SOP class UID, SOP Instance UID], ...
);
CREATE INDEX proof_request_open ON proof_request (destination, id) WHERE state <> 'answered';

-- What a destination reported of one, noted before it is told so. Born: receive; owner: forward, which deletes it when
-- it has drawn the consequences.
CREATE TABLE proof_report (
    id INTEGER PRIMARY KEY,
    request INTEGER NOT NULL,
    tick INTEGER NOT NULL,
    outcomes BLOB NOT NULL          -- zlib of JSON: [position among the references, failure reason or 0], ...
);
CREATE INDEX proof_report_of ON proof_report (request);

-- A performed procedure step, as its modality tells it (MPPS, PS3.4 Annex F), and the series it says it made: evidence,
-- kept for some weeks. Owner: receive.
CREATE TABLE performed_step (
    id INTEGER PRIMARY KEY,
    sop_instance_uid TEXT NOT NULL UNIQUE,
    calling_ae TEXT NOT NULL,
    studies TEXT NOT NULL,          -- JSON: Study Instance UIDs
    state TEXT NOT NULL,            -- states.StepState
    created_tick INTEGER NOT NULL,
    ended_tick INTEGER NOT NULL
);
CREATE INDEX performed_step_by_peer ON performed_step (calling_ae, id);
CREATE TABLE performed_series (
    step INTEGER NOT NULL,
    series_instance_uid TEXT NOT NULL,
    count INTEGER NOT NULL,         -- of instances
    instances BLOB NOT NULL,        -- zlib of JSON: SOP Instance UIDs
    PRIMARY KEY (step, series_instance_uid)
);
CREATE INDEX performed_series_by_uid ON performed_series (series_instance_uid);

-- What happened (P11). Appended in the transaction of what it tells; per-instance lines are pruned some days after
-- settlement, study lines stay.
CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    tick INTEGER NOT NULL,
    process TEXT NOT NULL,
    event TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    detail TEXT NOT NULL            -- JSON
);
CREATE INDEX history_by_study ON history (study_instance_uid) WHERE study_instance_uid <> '';
CREATE INDEX history_by_instance ON history (sop_instance_uid) WHERE sop_instance_uid <> '';
