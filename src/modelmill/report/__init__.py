"""Show what came of a run: from records to `report.json`, `report.md` and `report.html`.

    facts -> judge -> describe -> document -> page, markdown, table

Pure: the report stage gathers `RunFacts` from the store and writes what `compose.render`
returns; the command line prints `table.summary_table` of a stored document.
"""
