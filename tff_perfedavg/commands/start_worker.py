"""Starts a TFF worker that trains for other machines until Ctrl-C.

  start_worker.py --port=8000                        # for this machine alone
  start_worker.py --port=8000 --address=10.0.0.7     # in a private network

Training on another machine then says --workers=10.0.0.7:8000,... The worker reads the
users' rows from its own copy of the store, at the same path as there.

Whoever reaches the address may run any computation on this machine: TFF's protocol has
no passwords and no encryption. Keep it to a private network, or to a tunnel.
"""

import sys

from absl import flags

from tff_perfedavg.runtime import worker_process

_WARNING = """\
WARNING: anyone who reaches {address}:{port} can run any computation on this machine
and read its files: there is no password and no encryption. Use a private network, a
firewall, or a tunnel to an address of this machine alone."""


def define(flag_values):
    flags.DEFINE_integer(
        "port",
        None,
        "Where it is reached.",
        1,
        65535,
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "address",
        worker_process.LOOPBACK,
        f"Address of this machine on which it is reached; "
        f"{worker_process.EVERY_ADDRESS} for every one.",
        flag_values=flag_values,
    )


def main(flag_values):
    address, port = flag_values.address, flag_values.port
    if address != worker_process.LOOPBACK:
        print(_WARNING.format(address=address, port=port), file=sys.stderr)
    try:
        listening = worker_process.listen(address, port)
        print(f"A TFF worker serves on {address}:{port} until Ctrl-C.", flush=True)
        worker_process.serve(listening)
    except KeyboardInterrupt:
        print("Ended.")
