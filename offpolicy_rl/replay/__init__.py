"""The wait: lag control (admission), the ledger of tickets and groups, batching."""
