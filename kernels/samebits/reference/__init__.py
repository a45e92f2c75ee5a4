"""Every operator again, as the plainest loop over binary32 scalars: slow, obvious, and what the fast ones equal."""
