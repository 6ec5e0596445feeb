// SPDX-License-Identifier: LGPL-2.1-or-later
//! The service, without a .proto file and so without protoc.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let call = Method::builder()
        .name("call")
        .route_name("Call")
        .input_type("crate::Nothing")
        .output_type("crate::Nothing")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let service = Service::builder()
        .name("Empty")
        .package("bench")
        .method(call)
        .build();
    Builder::new().compile(&[service]);
}
