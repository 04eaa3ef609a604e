"""Which file Inception's published weights are. No torch."""

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
"""As torch-fidelity calls it; begins with `weights-` in place of `pt_` where its release v0.2.0 on GitHub has it."""
