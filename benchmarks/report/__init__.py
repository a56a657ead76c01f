"""From records to tables: selection rules, statistics, comparability, rendering. pandas only, never torch."""
