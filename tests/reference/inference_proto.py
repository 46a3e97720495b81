"""Holds proto/inference/open_inference.proto to the descriptors of the real clients: what both know has one number, type
and label. Needs grpcio-tools and one of the clients (they cannot be in one process):

    pip install grpcio-tools 'tritonclient[grpc]==2.73.0'   # or kserve==0.21.0
    python tests/reference/inference_proto.py tritonclient.grpc.service_pb2
    python tests/reference/inference_proto.py kserve.protocol.grpc.grpc_predict_v2_pb2
"""

import importlib
import pathlib
import sys
import tempfile

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_tools import protoc

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "proto"


def ours():
    with tempfile.NamedTemporaryFile() as file:
        arguments = ["", f"-I{FOLDER}", f"--descriptor_set_out={file.name}", "inference/open_inference.proto"]
        assert protoc.main(arguments) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("inference/open_inference.proto")


def describe(field):
    of = field.message_type or field.enum_type
    return field.number, field.type, field.is_repeated, of and of.full_name


def compare(message, theirs, told):
    for field in message.fields:
        known = theirs.fields_by_name.get(field.name)
        if known is None:
            told.append(f"{message.full_name}.{field.name} is not known to this client")
        elif describe(known) != describe(field):
            raise SystemExit(f"{message.full_name}.{field.name} is {describe(known)} there, {describe(field)} here")
    for nested in message.nested_types:
        if nested.name in theirs.nested_types_by_name:
            compare(nested, theirs.nested_types_by_name[nested.name], told)


def main(module):
    client = importlib.import_module(module).DESCRIPTOR
    files = [client, *client.dependencies]
    messages = {name: message for file in files for name, message in file.message_types_by_name.items()}
    enums = {name: enum for file in files for name, enum in file.enum_types_by_name.items()}
    mine, told = ours(), []
    for name, message in mine.message_types_by_name.items():
        if name in messages:
            compare(message, messages[name], told)
        else:
            told.append(f"{message.full_name} is not known to this client")
    for name, enum in mine.enum_types_by_name.items():
        if name in enums:
            assert [(v.name, v.number) for v in enum.values] == [(v.name, v.number) for v in enums[name].values], name
    (service,), (theirs,) = mine.services_by_name.values(), client.services_by_name.values()
    assert service.full_name == theirs.full_name
    for method in service.methods:
        known = theirs.methods_by_name.get(method.name)
        if known is None:
            told.append(f"{method.full_name} is not known to this client")
        else:
            assert (method.input_type.full_name, method.output_type.full_name) == (
                known.input_type.full_name,
                known.output_type.full_name,
            ), method.name
    print(*told, sep="\n")
    print(f"{len(mine.message_types_by_name)} messages agree with {module} where it knows them")


main(*sys.argv[1:])
