from rewarm.v1 import reward_pb2 as _reward_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("variants", "changes")
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    variants: _containers.RepeatedCompositeFieldContainer[_reward_pb2.VariantInfo]
    changes: _containers.RepeatedCompositeFieldContainer[VariantChange]
    def __init__(self, variants: _Optional[_Iterable[_Union[_reward_pb2.VariantInfo, _Mapping]]] = ..., changes: _Optional[_Iterable[_Union[VariantChange, _Mapping]]] = ...) -> None: ...

class VariantChange(_message.Message):
    __slots__ = ("variant", "before", "after", "parts")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    variant: str
    before: str
    after: str
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, variant: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...

class SetRoutingRequest(_message.Message):
    __slots__ = ("weights", "expected")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.ScalarMap[str, float]
    expected: _containers.RepeatedCompositeFieldContainer[ExpectedWeights]
    def __init__(self, weights: _Optional[_Mapping[str, float]] = ..., expected: _Optional[_Iterable[_Union[ExpectedWeights, _Mapping]]] = ...) -> None: ...

class ExpectedWeights(_message.Message):
    __slots__ = ("weights",)
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.ScalarMap[str, float]
    def __init__(self, weights: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SetRoutingResponse(_message.Message):
    __slots__ = ("routing",)
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    routing: _reward_pb2.Routing
    def __init__(self, routing: _Optional[_Union[_reward_pb2.Routing, _Mapping]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
