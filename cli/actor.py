"""Whose command it is, for the audit log."""

import os
import pwd
import socket


def command_actor() -> str:
    """The account and the machine that the command runs on: who may use the database's URL may do everything."""
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        account = str(os.getuid())
    return f"cli:{account}@{socket.gethostname()}"
