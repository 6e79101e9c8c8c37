-- The status of a moment is the strongest of its values; consecutive moments of one status are one
-- candidate, divided by 14 hours without a charted status.
-- Source: mimic-code, mimic-iv/concepts/treatment/ventilation.sql.
CREATE OR REPLACE TEMP TABLE ventilation_candidate AS
WITH charted_value AS (
    SELECT icu_stay_id, charted_at, $device AS item, first_device AS value
    FROM ventilation_moment WHERE on_oxygen_flow OR NOT $with_flow
    UNION ALL
    SELECT icu_stay_id, charted_at, $mode, mode FROM ventilation_moment
    UNION ALL
    SELECT icu_stay_id, charted_at, $hamilton_mode, hamilton_mode FROM ventilation_moment
), ranked AS (
    SELECT charted_value.icu_stay_id, charted_value.charted_at, status_value.rank
    FROM charted_value JOIN ventilation_status_value AS status_value USING (item, value)
    UNION ALL
    SELECT icu_stay_id, charted_at, $mask_rank
    FROM ventilation_moment WHERE on_mask AND (on_oxygen_flow OR NOT $with_flow)
), moment AS (
    SELECT icu_stay_id, charted_at, min(rank) AS rank
    FROM ranked WHERE icu_stay_id IS NOT NULL GROUP BY ALL
), with_neighbors AS (
    SELECT *,
        lag(rank) OVER stay AS previous_rank,
        lag(charted_at) OVER stay AS previous_at,
        lead(charted_at) OVER stay AS next_at
    FROM moment
    WINDOW stay AS (PARTITION BY icu_stay_id ORDER BY charted_at)
), numbered AS (
    -- date_diff counts the full hours of the clock that pass, as BigQuery does: 00:30 to 14:29 are
    -- 14 hours, 00:00 to 13:59 are 13
    SELECT *,
        coalesce(date_diff('hour', charted_at, next_at) < 14, false) AS lasts_until_next,
        sum((
            previous_rank IS DISTINCT FROM rank
            OR date_diff('hour', previous_at, charted_at) >= 14)::INTEGER)
            OVER (PARTITION BY icu_stay_id ORDER BY charted_at) AS number
    FROM with_neighbors
)
SELECT
    icu_stay_id,
    any_value(status_rank.status) AS status,
    min(charted_at) AS began_at,
    max(if(lasts_until_next, next_at, charted_at)) AS ended_at,
    if(min(charted_at) = max(charted_at), 'charted at one moment only', NULL) AS reason
FROM numbered
JOIN (SELECT DISTINCT rank, status FROM ventilation_status_value) AS status_rank USING (rank)
GROUP BY icu_stay_id, number
