"""Many boards, many users: leases, choosing, health, plans.  See README.md."""
