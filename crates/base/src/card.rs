//! What errors of a CUDA driver mean to who runs into them.

use crate::error::{Error, Kind};

/// Names of errors, and what to do about them.
const HINTS: [(&str, &str); 9] = [
    ("OUT_OF_MEMORY", NO_ROOM),
    ("ALLOC_FAILED", NO_ROOM),
    ("NO_DEVICE", "`nvidia-smi` must list a card; a container needs `--gpus all`"),
    (
        "DEVICE_UNAVAILABLE",
        "another process has the card for itself: wait for it, or choose another with `--device cuda:N`",
    ),
    ("INSUFFICIENT_DRIVER", "install a driver for CUDA 13, which is 580 or newer"),
    (
        "UNSUPPORTED_PTX_VERSION",
        "install a driver as new as the CUDA that built this and as the libnvrtc that is found (580 for 13.0), or build with CUDA 13.0 and put its libraries first in LD_LIBRARY_PATH",
    ),
    ("nvrtc-builtins", "put the folder of libnvrtc-builtins, which is that of libnvrtc, in LD_LIBRARY_PATH"),
    ("SYSTEM_DRIVER_MISMATCH", "the driver was updated while it was in use: restart the machine"),
    ("NO_BINARY_FOR_GPU", "build with CUDA_COMPUTE_CAP=80, which every card since then runs"),
];

const NO_ROOM: &str = "lower the batch or K, set `checkpoint_steps` or `checkpoint_blocks`, and see in `nvidia-smi` who else is on the card";

/// The error of a card with this message, and the hint where there is one.
pub fn error(message: String) -> Error {
    let hint = HINTS.iter().find(|(name, _)| message.contains(name)).map(|(_, hint)| (*hint).to_string());
    Error { hint, ..Error::new(Kind::Device, message) }
}
