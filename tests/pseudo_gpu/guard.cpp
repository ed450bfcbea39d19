// The few things that torch asks of CUDA from C++ and that its CPU build has not: a guard that keeps
// the number of the current device, hooks that answer for devices, and host memory that is known as
// pinned. preload.py compiles this and loads it before torch.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <string>

namespace {

constexpr c10::DeviceIndex kDevices = 8;  // autograd starts a thread for each
thread_local c10::DeviceIndex current = 0;

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device getDevice() const override { return {type(), current}; }
  void setDevice(c10::Device device) const override { current = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    current = device.index();
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  // Streams are kept in Python; whatever C++ does is on the default one.
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};

// Ordinary memory whose addresses are remembered.
class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::aligned_alloc(64, (bytes / 64 + 1) * 64);
    if (data == nullptr) throw std::bad_alloc();
    const std::lock_guard<std::mutex> lock(mutex());
    blocks()[reinterpret_cast<std::uintptr_t>(data)] = bytes;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  static bool holds(const void* data) {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const std::lock_guard<std::mutex> lock(mutex());
    auto after = blocks().upper_bound(address);
    return after != blocks().begin() && address < (--after)->first + after->second;
  }

 private:
  static void release(void* data) {
    const std::lock_guard<std::mutex> lock(mutex());
    blocks().erase(reinterpret_cast<std::uintptr_t>(data));
    std::free(data);
  }
  // Never destroyed: tensors may outlive every static object.
  static std::map<std::uintptr_t, size_t>& blocks() {
    static auto* held = new std::map<std::uintptr_t, size_t>();
    return *held;
  }
  static std::mutex& mutex() {
    static auto* one = new std::mutex();
    return *one;
  }
};

}  // namespace

struct EmulatedHooks final : at::CUDAHooksInterface {
  explicit EmulatedHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex current_device() const override { return current; }
  std::string showConfig() const override { return "an emulated GPU\n"; }
  bool isPinnedPtr(const void* data) const override { return PinnedMemory::holds(data); }
  at::Allocator* getPinnedMemoryAllocator() const override {
    static PinnedMemory memory;
    return &memory;
  }
};

namespace at {
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", ::EmulatedHooks);
}

extern "C" void register_guard() {
  auto& place = c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)];
  if (place.load() == nullptr) place.store(new Guard());
}
