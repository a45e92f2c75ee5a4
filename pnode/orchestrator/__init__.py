"""The reference orchestrator: membership, placement, runs and their recovery. Start reading at core.py."""
