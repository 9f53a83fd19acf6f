-- A chunk of a journal of years, for the benchmark: 150 images a series, 300 a study, all to one destination. Read by
-- big_journal.py, which puts one row into `given` where it says "Filled.".

DROP VIEW IF EXISTS made;
DROP TABLE IF EXISTS given;
CREATE TEMP TABLE given (first, last, first_owed, first_told, now);
CREATE TEMP VIEW made AS
WITH RECURSIVE number (n) AS (SELECT first FROM given UNION ALL SELECT n + 1 FROM number, given WHERE n < last)
SELECT n,
    n >= first_owed AS owed,
    n >= first_told AS told,
    now - (last - n) * 100 AS tick,
    '2026-01-01T00:00:00.000+00:00' AS at,
    525000 AS size,
    '1.2.826.0.1.3680043.2.1125.1.1.' || printf('%024d', (n - 1) / 300) AS study,
    '1.2.826.0.1.3680043.2.1125.1.2.' || printf('%024d', (n - 1) / 150) AS series,
    '1.2.826.0.1.3680043.2.1125.1.3.' || printf('%024d', n) AS instance
FROM number, given;

-- Filled.

INSERT INTO instance (id, origin, kind, sop_class_uid, sop_instance_uid, transfer_syntax_uid, digest, size,
    study_instance_uid, series_instance_uid, modality, patient, calling_ae, job, tick, at)
SELECT n, 'received', 'image', '1.2.840.10008.5.1.4.1.1.2', instance, '1.2.840.10008.1.2.1', randomblob(32), size,
    study, series, 'CT', randomblob(32), 'BENCH', NULL, tick, at
FROM made;

INSERT INTO copy (file, instance)
SELECT 'received/' || printf('%06d/%09d.dcm', n / 1000, n), n FROM made WHERE owed;

INSERT INTO series (study_instance_uid, series_instance_uid, modality, calling_ae, state, revision, arrivals,
    stated_count, first_tick, last_tick, released, interrupted, evidence)
SELECT study, series, 'CT', 'BENCH', 'closed', 1, 150, 0, tick, tick, 1, 0, 'silence' FROM made WHERE n % 150 = 1;

INSERT INTO job (engine, scope, study_instance_uid, series_instance_uid, sop_instance_uid, subject, revision, state,
    input_digest, last_instance_id, attempts, deadline_tick, evidence, predecessor, provisional_digest, outcome,
    concluded_at, implausible_clock)
SELECT 'ct-lesion@0.1.0', 'study', study, series, '', study, 1, 'reported', hex(randomblob(32)), n, 1, tick,
    'silence', '', '', NULL, at, 0
FROM made WHERE n % 300 = 1;

INSERT INTO delivery (instance, destination, urgency, size, state, attempts, reason, created_tick, started_tick,
    settled_tick)
SELECT n, 'pacs', CASE n % 100 WHEN 0 THEN 2 ELSE 4 END, size, CASE owed WHEN 1 THEN 'queued' ELSE 'delivered' END, 1,
    '', tick, tick, tick
FROM made;

INSERT INTO history (at, tick, process, event, study_instance_uid, series_instance_uid, sop_instance_uid, detail)
SELECT at, tick, 'receive', 'received', study, series, instance,
    '{"calling_ae":"BENCH","peer":"192.0.2.10","association":7,"bytes":525000,"digest":"' || hex(randomblob(32)) || '"}'
FROM made WHERE told;

INSERT INTO history (at, tick, process, event, study_instance_uid, series_instance_uid, sop_instance_uid, detail)
SELECT at, tick, 'forward', 'delivered', study, series, instance,
    '{"destination":"pacs","attempts":1,"ms":9,"reason":""}'
FROM made WHERE told AND NOT owed;

INSERT INTO history (at, tick, process, event, study_instance_uid, series_instance_uid, sop_instance_uid, detail)
SELECT at, tick, 'analyse', 'job_reported', study, series, '', '{"engine":"ct-lesion@0.1.0","results":2,"note":""}'
FROM made WHERE n % 300 = 1;

INSERT OR REPLACE INTO cursor SELECT 'assembled', last FROM given;
