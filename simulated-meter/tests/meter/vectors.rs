//! The published examples, byte for byte: Green Book as DLMS_SECURITY has it, sections 7, 13 and 15.

use crate::common::{CLIENT, METER, bytes, one_setup, order};
use simulated_meter::{
    Dialect, HeadEnd, KeyId, Keys, Meter, Value,
    frame::{Envelope, Frame, Under, seal},
    hls,
    service::{Place, Request, Response, setup_of},
    wrap,
};

const EK: &str = "000102030405060708090A0B0C0D0E0F";
const AK: &str = "D0D1D2D3D4D5D6D7D8D9DADBDCDDDEDF";

/// The Green Book's keys, and its master key.
fn keys() -> Keys {
    Keys {
        unicast: bytes(EK),
        broadcast: bytes("0F0E0D0C0B0A09080706050403020100"),
        authentication: bytes(AK),
        kek: bytes(EK),
    }
}

const METER_OF_BOOK: [u8; 8] = *b"MMM\x00\x00\xbc\x61\x4e";

#[test]
fn the_three_protections_of_one_get_are_read_and_written() {
    let plain = "C0010000080000010000FF0200";
    let frames = [
        (0x10, format!("C81E1001234567{plain}06725D910F9221D263877516")),
        (0x20, "C8122001234567411312FF935A47566827C467BC".to_owned()),
        (0x30, "C81E3001234567411312FF935A47566827C467BC7D825C3BE4A77C3FCC056B6B".to_owned()),
    ];
    let keys = keys();
    let under = Under {
        encryption: &keys.unicast,
        authentication: &keys.authentication,
        originator: METER_OF_BOOK,
    };
    for (control, frame) in frames {
        let sealed = seal(&Envelope::Glo, (control, 0x0123_4567), under, CLIENT, &bytes(plain));
        assert_eq!(sealed.unwrap(), bytes(&frame));
        assert_eq!(Frame::read(&bytes(&frame)).unwrap().open(under).unwrap(), bytes(plain));
        let another = Under { originator: CLIENT, ..under };
        let opened = Frame::read(&bytes(&frame)).unwrap().open(another);
        assert!(opened.is_none_or(|it| it != bytes(plain)), "{control:x}");
    }
    let get = Request::read(&bytes(plain)).unwrap();
    let at = Place { class: 8, instance: [0, 0, 1, 0, 0, 255], index: 2 };
    assert_eq!(get, Request::Get { id: 0, at });
    assert_eq!(get.write(), bytes(plain));
}

#[test]
fn both_answers_of_mechanism_5_are_those_of_the_book() {
    let keys = keys();
    let (encryption, authentication) = (&keys.unicast[..], &keys.authentication[..]);
    let client = Under { encryption, authentication, originator: *b"MMM\x00\x00\x00\x00\x01" };
    let server = Under { originator: METER_OF_BOOK, ..client };
    let (of_client, of_server) =
        (bytes("10000000011A52FE7DD3E72748973C1E28"), bytes("1001234567FE1466AFB3DBCD4F9389E2B7"));
    assert_eq!(hls::answer(client, 0, 1, b"P6wRJ21F").unwrap(), of_client);
    assert_eq!(hls::answer(server, 0, 0x0123_4567, b"K56iVagY").unwrap(), of_server);
    assert!(hls::answers(client, 0, b"P6wRJ21F", &of_client));
    assert!(!hls::answers(server, 0, b"P6wRJ21F", &of_client));
    assert!(!hls::answers(client, 0, b"P6wRJ21F", &of_server));
}

/// The whole of it: the meter of the book, with its counter and its challenge, takes the client's answer and gives its own.
#[test]
fn a_meter_of_the_book_answers_as_the_book_does() {
    let client = *b"MMM\x00\x00\x00\x00\x01";
    let mut ordered = order(Dialect::BY_THE_BOOK, one_setup(0, keys()));
    ordered.title = METER_OF_BOOK;
    ordered.setups[0].first_counter = 0x0123_4567;
    ordered.associations[0].title = client;
    let mut meter = Meter::new(ordered);
    let mut head_end = HeadEnd::new(client, METER_OF_BOOK, 0, keys());
    meter.challenge_next(b"P6wRJ21F");
    let accepted = meter.receive(1, &head_end.associate(b"K56iVagY")).unwrap();
    let asked = head_end.answer(&accepted).unwrap();
    let inner = head_end.clone();
    let under = Under {
        encryption: &inner.keys.unicast,
        authentication: &inner.keys.authentication,
        originator: client,
    };
    let plain = Frame::read(&asked).unwrap().open(under).unwrap();
    let given = "10000000011A52FE7DD3E72748973C1E28";
    assert_eq!(plain, bytes(&format!("C301C1000F0000280000FF01010911{given}")));
    let answer = meter.receive(1, &asked).unwrap();
    let Some(Response::Acted { result: 0, returned: Some(Value::Octets(ours)), .. }) =
        head_end.hear(&answer)
    else {
        panic!("{answer:02x?}")
    };
    assert_eq!(ours, bytes("1001234567FE1466AFB3DBCD4F9389E2B7"));
    assert!(head_end.confirmed(b"K56iVagY", &answer));
    assert!(meter.is_open(1));
}

#[test]
fn the_transfer_of_a_guek_is_that_of_the_book_and_is_taken() {
    let new = bytes("00112233445566778899AABBCCDDEEFF");
    let wrapped = bytes("1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5");
    assert_eq!(wrap::wrap(&bytes(EK), &new).unwrap(), wrapped);
    let transfer = Request::transfer(0, &[(KeyId::Unicast, wrapped)]);
    let plain = bytes(concat!(
        "C301C1004000002B0000FF02010101020216000918",
        "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"
    ));
    assert_eq!(plain.len(), 45);
    assert_eq!(transfer.write(), plain);
    assert_eq!(Request::read(&plain).unwrap(), transfer);

    let mut ordered = order(Dialect::BY_THE_BOOK, one_setup(0, keys()));
    ordered.associations[0].mechanism = simulated_meter::Mechanism::PreEstablished;
    let mut meter = Meter::new(ordered);
    let mut head_end = HeadEnd::new(CLIENT, METER, 0, keys());
    let asked = head_end.ask(&transfer).unwrap();
    assert_eq!((asked[0], asked[1], asked[2], asked.len()), (0xcb, 0x3e, 0x30, 64));
    let answer = meter.receive(1, &asked).unwrap();
    let done = Response::Acted { id: 0xc1, result: 0, returned: None };
    assert_eq!(head_end.hear(&answer), Some(done));
    assert_eq!(meter.keys(0).unwrap().unicast, new);
    assert_eq!(setup_of(0, 2).instance, [0, 0, 43, 0, 0, 255]);
}

/// A general-ciphering frame of a server in the field: its header is a part of what is authenticated (section 15).
#[test]
fn a_general_ciphering_frame_of_another_stack_opens_with_its_header() {
    let frame = bytes(concat!(
        "DD0008474F444C4D533031085059444C4D5330310C07EA0A100512211408000000",
        "000100001A3000000004DA8398D1F5FA22D82D4598EA7E3E44D38734E154FB"
    ));
    let keys = keys();
    let under = |originator| Under {
        encryption: &keys.unicast,
        authentication: &keys.authentication,
        originator,
    };
    let plain = bytes("C401C2000600BC614E");
    let read = Frame::read(&frame).unwrap();
    assert_eq!(read.originator, Some(*b"GODLMS01"));
    assert_eq!(read.open(under(*b"GODLMS01")).unwrap(), plain);
    let envelope = Envelope::GeneralCiphering { transaction: vec![1, 2, 3] };
    let sealed = seal(&envelope, (0x30, 4), under(METER), CLIENT, &plain).unwrap();
    let read = Frame::read(&sealed).unwrap();
    assert_eq!(read.open(under(METER)).unwrap(), plain);
    // One bit of what stands before the key's name, and it opens no more.
    for bit in 8..8 * 23 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let opened = Frame::read(&changed).and_then(|it| it.open(under(METER)));
        assert_eq!(opened, None, "bit {bit}");
    }
}
