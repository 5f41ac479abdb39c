//! The arguments of `decrypt` and `verify`.

use clap::{Args, ValueEnum};
use dlms::frame::FrameKind;
use kms_client::{MeterId, SystemTitle, parse_system_title};

use crate::failure::Failure;

/// What carries the APDU.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Frame {
    /// Whatever it begins as
    #[default]
    Auto,
    /// Nothing: it is sent as it is
    None,
    /// HDLC, 7E … 7E
    Hdlc,
    /// The wrapper of TCP and UDP, 0001 …
    Wrapper,
    /// Long frames of the wired M-Bus, 68 L L 68 … 16
    Mbus,
    /// Blocks of general-block-transfer, E0 …
    Gbt,
}

impl Frame {
    /// `None`: whatever it begins as.
    pub(crate) fn kind(self) -> Option<FrameKind> {
        match self {
            Self::Auto | Self::None => None,
            Self::Hdlc => Some(FrameKind::Hdlc),
            Self::Wrapper => Some(FrameKind::Wrapper),
            Self::Mbus => Some(FrameKind::MBus),
            Self::Gbt => Some(FrameKind::BlockTransfer),
        }
    }
}

#[derive(Args, Default)]
pub(crate) struct Items {
    /// The meter, by the operator's name
    #[arg(long, value_name = "ID", conflicts_with = "system_title")]
    pub(crate) meter: Option<MeterId>,
    /// The meter, by its name on the wire, 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_system_title)]
    pub(crate) system_title: Option<SystemTitle>,
    /// e in 0.0.43.0.e.255; each in turn otherwise
    #[arg(long, value_name = "N")]
    pub(crate) security_setup: Option<u8>,
    /// One ciphered APDU in hex, with its frame or without; spaces, colons and dashes do not matter.
    /// All frames and blocks of one APDU stand one after the other. `-`: JSON lines on standard input, such as
    /// {"meter":"…","apdu":"HEX"}, with system_title, security_setup and id if wanted
    #[arg(long, value_name = "HEX|-")]
    pub(crate) apdu: Option<String>,
    /// What carries the APDU: it is checked and taken off, and pieces are put together
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub(crate) frame: Frame,
    /// `-`: as --apdu -
    #[arg(value_name = "-", conflicts_with = "apdu")]
    pub(crate) input: Option<String>,
}

impl Items {
    /// Whether the APDUs come as lines on standard input.
    pub(crate) fn reads_lines(&self) -> bool {
        self.apdu.as_deref().or(self.input.as_deref()) == Some("-")
    }

    pub(crate) fn check(&self) -> Result<(), Failure> {
        let is_said = self.apdu.is_some() || self.input.as_deref() == Some("-");
        let problem = "say which APDU: --apdu HEX, or `-` for lines on standard input";
        if is_said { Ok(()) } else { Err(Failure::usage(problem)) }
    }
}
